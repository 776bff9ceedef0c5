"""Draws that overflow or lack a metric are dropped, AMP's scaler is told; scales are checked.

A ``torch.amp.GradScaler`` unscales, steps and updates once a window in place of once a draw.
"""

from typing import Any

from torch.amp.grad_scaler import OptState

from gqc.gradients import count_nonfinite, multiply_


def refuse(wrapper: Any, *, overflow: bool) -> None:
    """Drop a draw with NaN or inf (``overflow``), or without a metric; in ``.grad`` its window."""
    window, scaler = wrapper._window, wrapper.grad_scaler
    if overflow and wrapper.nonfinite == "raise" and scaler is None:
        if window.expose():
            window.undo()
        grads = enumerate(p.grad for p in window.params)
        bad = [i for i, g in grads if g is not None and count_nonfinite([g])]
        raise FloatingPointError(
            f"NaN or infinite gradient in microbatch {wrapper.batches}, parameters {bad[:5]}: left "
            "in .grad to look at; discard() drops the window"
        )
    if overflow and scaler is not None:  # it skips the step, and lowers its scale
        before = scaler.get_scale()
        window.expose()
        scaler.unscale_(wrapper.optimizer)
        wrapper._is_skipping = True
        try:
            scaler.step(wrapper.optimizer)
        finally:
            wrapper._is_skipping = False
        scaler.update()
        multiply_(window.totals(), scaler.get_scale() / before)
        window.scale = None
    # With reduce_at_step ranks agree on windows, not on draws.
    lost = window.clear() if wrapper.reduce_at_step or window.num_deferred else window.refuse()
    wrapper._counts["num_discarded"] += lost
    if overflow and scaler is None:
        wrapper._warn_once(
            f"a NaN or infinite gradient in microbatch {wrapper.batches}: {lost} draws "
            "discarded (counted in num_discarded; this warning comes once)"
        )
    wrapper.forget_norms()
    if wrapper.num_draws == 0:
        wrapper._end_window(stepped=False)


def check_scale(wrapper: Any) -> None:
    """Raises: RuntimeError: a draw is unscaled, or not scaled as the earlier ones of its window.

    The host waits only where somebody else has updated the scale in an open window.
    """
    scaler, window = wrapper.grad_scaler, wrapper._window
    for optimizer in (wrapper, wrapper.optimizer):
        state = scaler._per_optimizer_states.get(id(optimizer))
        if state is not None and state["stage"] is not OptState.READY:
            raise RuntimeError(
                f"GradScaler.unscale_({type(optimizer).__name__}) before the draw: the wrapper "
                "does that when a window closes, and would divide by the scale twice. Remove "
                "the call; what needs unscaled gradients, such as clipping, belongs in the "
                "wrapped optimizer, wrapper.optimizer (gqc.clipping.clip_before_step)"
            )
    if (scale := scaler._scale) is None:
        raise RuntimeError(
            "grad_scaler= was given, but no loss has gone through its scale(), and the gradient "
            "would be divided by it: scaler.scale(loss).backward()"
        )
    when = f"while {window.num_draws} draws wait for a step"
    if window.num_draws == 0 or window.scale is None:
        when = "between backward() and step()"
        noted = window.watch.scale if window.watch is not None else None
        window.scale_count, window.scale = noted or (scale._version, scale.clone())
    if window.scale_count != scale._version and (before := float(window.scale)) != float(scale):
        raise RuntimeError(
            f"the scale of grad_scaler went from {before:g} to {float(scale):g} {when}, by its "
            "update() or load_state_dict(): the wrapper updates it itself, so give it a GradScaler "
            "of its own, and load that of the checkpoint too; discard() drops the window"
        )
    window.scale_count = scale._version
