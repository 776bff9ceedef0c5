"""Checks of names that people type: an unknown one is an error that says which is nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_name(kind: str, name: object, known: Iterable[str]) -> None:
    """Is ``name`` one of ``known``?

    Raises:
        ValueError: it is not; the message names the nearest and all that are known.
    """
    names = list(known)
    if name in names:
        return
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"{kind}={name!r}: {hint}expected one of {', '.join(names) or '(none)'}")
