"""The norms of a draw: read in one transfer, unscaled where an AMP scaler is in use, and judged.

A ``torch.amp.GradScaler`` unscales, steps and updates once a window in place of once a draw.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

from gqc.gradients import count_nonfinite


def enabled(scaler: Any) -> Any:
    """``scaler``; None where it is disabled, since its step() steps whatever the gradient is."""
    return scaler if scaler is not None and scaler.is_enabled() else None


def read(wrapper: Any, norms: dict[str, Tensor]) -> None:
    """The draw's one host sync: all the ``norms`` that it needs in one transfer, unscaled."""
    wrapper.forget_norms()
    if not norms:
        return
    tensors, window, scaler = list(norms.values()), wrapper._window, wrapper.grad_scaler
    values = tensors[0]
    if len(tensors) > 1:
        values = torch.hstack([t.to(values.device) for t in tensors])
    if scaler is not None:
        values = values / scaler.scale(values.new_ones(values.shape))
    found = values.tolist() if values.dim() else [values.item()]
    if "draw_norm" in norms:
        wrapper.draw_norm = found.pop(0) * window.unit / window.last_weight
    if "grad_norm" in norms:
        wrapper.grad_norm, *wrapper.tensor_norms = [norm / window.divisor for norm in found]


def is_checked(wrapper: Any) -> bool:
    """Are gradients looked at for NaN and inf?"""
    return wrapper.nonfinite != "ignore" or wrapper.grad_scaler is not None


def must_check(wrapper: Any) -> bool:
    """Is a step the first look at its gradient, for NaN or by the ranks at each other's?"""
    is_new = wrapper.grad_norm is None
    must = wrapper.reduce_at_step or (is_new and wrapper._window.is_unchecked)
    if must and is_checked(wrapper):
        return True
    is_apart = not (wrapper.reduce_at_step or wrapper._is_wrapped)
    return is_apart and is_new and wrapper._looks > 0 and wrapper.ranks.size > 1


def is_finite(wrapper: Any) -> bool:
    """Are the norms just read finite, or too large to square though each element is finite?"""
    if not is_checked(wrapper):
        return True
    norms = [norm for norm in (wrapper.draw_norm, wrapper.grad_norm) if norm is not None]
    return all(map(math.isfinite, norms)) or not count_nonfinite(wrapper._window.totals())


def refuse(wrapper: Any, *, overflow: bool) -> None:
    """Drop the draw (its whole window where draws cannot be told apart).

    Args:
        overflow: does it hold NaN or inf?  Else it lacks a metric.
    Raises: FloatingPointError: it does, with ``nonfinite="raise"``.
    """
    window, scaler = wrapper._window, wrapper.grad_scaler
    if overflow and wrapper.nonfinite == "raise" and scaler is None:
        window.raise_nonfinite(wrapper.batches)
    if overflow and scaler is not None:  # it skips the step, and lowers its scale
        before = scaler.get_scale()
        window.expose()
        scaler.unscale_(wrapper.optimizer)
        scaler.step(wrapper.optimizer)
        scaler.update()
        window.rescale(scaler.get_scale() / before)
    # With reduce_at_step ranks agree on windows, not on draws.
    is_whole = wrapper.reduce_at_step or window.num_deferred
    lost = window.clear() if is_whole else window.refuse()
    wrapper._counts["num_discarded"] += lost
    if overflow and scaler is None:
        wrapper._warn_once(
            f"a NaN or infinite gradient in microbatch {wrapper.batches}: {lost} draws "
            "discarded (counted in num_discarded; this warning comes once)"
        )
    wrapper.forget_norms()
    if wrapper.num_draws == 0:
        wrapper._end_window(stepped=False)


def refuse_step(name: str) -> None:
    """Raises: RuntimeError: always.  For ``GradScaler.step(wrapper)``, once a draw.

    It would unscale earlier draws once more at each, and skip an overflow but leave it in the sum,
    after which no step ever happens.
    """
    raise RuntimeError(
        f"GradScaler.step({name}): unscale a window once, when it closes. Pass grad_scaler=scaler "
        "to the wrapper and call wrapper.step() alone, without scaler.step() and scaler.update()"
    )


def refuse_unscaled(scaler: Any, *optimizers: Optimizer) -> None:
    """Raises: RuntimeError: the loop has called ``unscale_`` since the last step."""
    for optimizer in optimizers:
        state = scaler._per_optimizer_states.get(id(optimizer))
        if state is not None and state["stage"] is not OptState.READY:
            raise RuntimeError(
                f"GradScaler.unscale_({type(optimizer).__name__}) before the draw: the wrapper "
                "does that when a window closes, and would divide by the scale twice. Remove "
                "the call; what needs unscaled gradients, such as clipping, belongs in the "
                "wrapped optimizer, wrapper.optimizer (gqc.clipping.clip_before_step)"
            )
