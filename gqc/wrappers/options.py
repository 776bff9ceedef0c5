"""The arguments that every wrapper takes, checked once."""

from __future__ import annotations

import math
from typing import Any

ACCUMULATE = ("grad", "buffer")
NONFINITE = ("discard", "raise", "ignore")


def check_draws(name: str, fewest: int, min_draws: int, max_draws: int | None) -> None:
    """Raises: ValueError: bounds that no window can meet; ``name`` needs ``fewest`` draws."""
    if not isinstance(min_draws, int) or not min_draws >= fewest:
        raise ValueError(f"min_draws={min_draws!r}: {name} expects an integer >= {fewest}")
    if max_draws is not None and (not isinstance(max_draws, int) or not max_draws >= min_draws):
        raise ValueError(
            f"max_draws={max_draws!r}: expected an integer >= min_draws={min_draws}, or None"
        )


def check_tunables(tunables: dict[str, float]) -> None:
    """Raises: ValueError: an initial value that is not > 0."""
    for key, value in tunables.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{key}={value!r}: expected a finite number > 0")


def check_ways(wrapper: Any, accumulate: str | None) -> None:
    """Raises: ValueError: an unknown way to go about gradients, or one that ``wrapper`` cannot."""
    name = type(wrapper).__name__
    if wrapper.nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite={wrapper.nonfinite!r}: expected one of {NONFINITE}")
    if accumulate not in (None, *ACCUMULATE):
        raise ValueError(f"accumulate={accumulate!r}: expected one of {ACCUMULATE}, or None")
    if wrapper.reduce_at_step and wrapper.needs_gradient:
        raise ValueError(
            f"reduce_at_step=True: {name} decides by the gradient of all ranks, which "
            "no_sync() holds back; leave no_sync() out, or use SBC, Replay or MHT"
        )
    if accumulate == "grad" and wrapper.needs_draw_norm:
        raise ValueError(
            f'accumulate="grad": {name} reads the norm of each draw, which needs "buffer"'
        )
