"""What several modules share: checks of arguments, which refuse NaN, and steps left untraced."""

import difflib
import functools
import math
from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def plain(value: Any) -> Any:
    """Return numpy's numbers as Python's, which checkpoints hold; anything else as it is."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value


def is_number(value: Any) -> bool:
    """Is ``value`` a finite number, of Python or numpy?"""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any, least: int = 0) -> bool:
    """Is ``value`` an integer of at least ``least``, of Python or numpy?"""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def expect(is_allowed: bool, name: str, value: Any, allowed: str) -> None:
    """Raise ValueError, which says what is ``allowed``, unless ``value`` is."""
    if not is_allowed:
        raise ValueError(f"{name}={value!r}: expected {allowed}")


def check_count(name: str, value: int, least: int, hint: str = "") -> int:
    """Return ``value`` as an int; raise ValueError unless it is an integer >= ``least``."""
    expect(is_count(value, least), name, value, f"an integer >= {least}{hint}")
    return int(value)


def check_finite(**values: float) -> None:
    """Raise ValueError, which says the name, unless each of ``values`` is finite and >= 0."""
    for name, value in values.items():
        expect(0 <= value < math.inf, name, value, "a finite number >= 0")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number > 0, also in a tensor."""
    is_allowed = isinstance(value, Real | Tensor) and 0 < value < math.inf
    expect(bool(is_allowed), name, value, "a finite number > 0")


def one_of(name: str, value: Any, allowed: Collection[str]) -> str:
    """Return ``value``; raise ValueError, with the nearest, unless it is one of ``allowed``."""
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0)
        raise ValueError(
            f"{name}={value!r}: expected one of {', '.join(allowed)}; did you mean {near[0]!r}?"
        )
    return str(value)


def untraced(method: F) -> F:
    """Run ``method`` as it is, also in a compiled train step.

    torch.compile loses what a traced one assigns to attributes of an ``Optimizer``.  Elsewhere
    torch's own decorator would cost a context at every call, and an import of all of its compiler.
    """
    hidden = torch._disable_dynamo(method)

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        return (hidden if torch.compiler.is_dynamo_compiling() else method)(*args, **kwargs)

    return cast(F, run)
