"""The error of a wrong request, and the checks of names that somebody typed."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class BadInput(ValueError):
    """The user's request is wrong: one line, exit code 2, nothing was written."""


def check_name(kind: str, name: object, known: Iterable[str]) -> None:
    """Refuse a ``name`` that is not one of ``known``.

    Raises: ValueError: names the most similar known name, and all of them.
    """
    names = list(known)
    if name in names:
        return
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"{kind}={name!r}: {hint}expected one of {', '.join(names) or '(none)'}")


def check_keys(where: str, row: Any, known: Iterable[str]) -> None:
    """Raises: BadInput: ``row`` is no mapping, or has a key that is not known."""
    if not isinstance(row, Mapping):
        raise BadInput(f"{where}{row!r}: expected a mapping")
    for key in row:
        if key not in known:
            raise BadInput(f"{where}unknown key {key!r}{nearest(key, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the most similar known name, or a list of all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names) or 'none'}"
