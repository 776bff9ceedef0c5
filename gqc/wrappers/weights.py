"""The weight of a draw over all ranks: tokens or examples behind its loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def weigh(wrapper: Any, weight: float | Tensor | None, device: torch.device) -> tuple[float, float]:
    r"""Weight of a draw over all ranks, and its unit (:mod:`gqc.wrappers.draws`).

    Raises: ValueError, alike on all ranks: a weight out of its range, or one that the gradients
        cannot be weighed with any more.
    """
    is_sum, default = wrapper.loss == "sum", float(wrapper.default_weight)
    _check_alike(wrapper, weight)
    together = wrapper.ranks  # at the first draw it refuses what cannot be right with any weight
    if weight is None:
        if is_sum and not wrapper.counts_examples:
            raise ValueError('loss="sum" needs step(weight=...), the tokens that were summed over')
        unit = float(together.require('loss="sum"').size) if is_sum else default
        check_unit(wrapper, default, unit, 1.0)
        return default, unit
    own, ranks = float(weight), together.require("step(weight=...)").size
    total, squares, positive = together.sum([own, own * own, float(own > 0)], device)
    if not (0 < total < math.inf and own >= 0) or (not is_sum and positive < ranks):
        raise ValueError(
            f"weight={own!r} (over all ranks {total!r}): expected a finite number > 0; leave out "
            "the step() of an empty microbatch"
        )
    if is_sum:
        return total, float(ranks)
    are_local = wrapper.reduce_at_step and not wrapper.sums_in_grad
    if not are_local and squares * ranks > total * total * (1 + 1e-9):
        raise ValueError(
            f"weight={own!r}, {total / ranks!r} on average over the ranks, whose mean losses were "
            'averaged as if they had equal weights. Give the wrapper loss="sum" and sum the losses '
            "of tokens"
        )
    unit = own * ranks
    check_unit(wrapper, own, unit, ranks)
    return total, unit


def _check_alike(wrapper: Any, weight: float | Tensor | None) -> None:
    """Raises: ValueError: draws with and without a weight in one window of equal draws."""
    window = wrapper._window
    if window.num_draws and not wrapper.counts_examples and window.is_weighted is (weight is None):
        ways = ("step() without a weight", "step(weight=...)")
        now, before = ways if weight is None else reversed(ways)
        raise ValueError(
            f"{now} after {before} in one window: nothing says how they compare. Give all of them "
            "a weight, the tokens or examples of this rank's microbatch, or none"
        )


def check_unit(wrapper: Any, own: float, unit: float, ranks: float) -> None:
    """Raises: ValueError: this draw's unit is not that of the earlier ones in ``.grad``."""
    if wrapper.sums_in_grad and wrapper.num_draws and unit != wrapper.unit:
        raise ValueError(
            f"weight={own!r} after draws of weight {wrapper.unit / ranks!r}: mean losses cannot be "
            'weighed in .grad, where they are summed. Pass accumulate="buffer", or loss="sum" '
            "and sum the losses of tokens"
        )
