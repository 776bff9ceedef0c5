"""What a wrapper does with a ``torch.amp.GradScaler``, once a window in place of once a draw."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

from gqc.wrappers.window import Window


def refuse_step(name: str) -> None:
    """Raises: RuntimeError: always.  For ``GradScaler.step(wrapper)``, once a draw.

    It would unscale earlier draws once more at each, and skip an overflow but leave it in the sum,
    after which no step ever happens.
    """
    raise RuntimeError(
        f"GradScaler.step({name}): unscale a window once, when it closes. Pass grad_scaler=scaler "
        "to the wrapper and call wrapper.step() alone, without scaler.step() and scaler.update()"
    )


def enabled(scaler: Any) -> Any:
    """``scaler``; None where it is disabled, since its step() steps whatever the gradient is."""
    return scaler if scaler is not None and scaler.is_enabled() else None


def unscaled(scaler: Any, norms: Tensor) -> Tensor:
    """Norms of scaled gradients -> those of the gradients."""
    return norms / scaler.scale(norms.new_ones(norms.shape))


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


def back_off(scaler: Any, optimizer: Optimizer, window: Window) -> None:
    """Tell the scaler of an overflow: it skips the step of ``optimizer`` and lowers its scale."""
    before = scaler.get_scale()
    window.expose()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    window.rescale(scaler.get_scale() / before)
