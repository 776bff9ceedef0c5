r"""The base of the optimizer wrappers: draw microbatches until the gradient is good enough to step.

Notation: :math:`n` draws (microbatches since the last step), :math:`g_i` the gradient of draw i,
:math:`A_n=\sum_{i\le n} g_i`, :math:`G_n=A_n/n`.  After each ``backward`` the loop calls
:meth:`OptimizerWrapper.step`; the wrapper adds the draw, reads the norms its decision needs (one
host sync), and either waits for one more draw or hands :math:`G_n` to the wrapped optimizer.

A new wrapper subclasses :class:`OptimizerWrapper` and overrides ``should_step`` (when to step) or
``transform`` (how to change :math:`G_n`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.gradients import average_over_ranks, count_nonfinite, total_norm
from gqc.wrappers import amp, options
from gqc.wrappers.windowed import ClosedWindow, WindowedOptimizer


class OptimizerWrapper(WindowedOptimizer):
    """Step ``optimizer`` only when the gradient accumulated so far is good enough.

    It is a ``torch.optim.Optimizer`` whose ``param_groups``, ``state`` and ``defaults`` are those
    of the wrapped one.  Tunables live in ``param_groups`` under their own names, so that schedules
    reach them and checkpoints hold them; with several groups the strictest value decides.

    Args:
        optimizer: any torch optimizer that steps in one call (not LBFGS).
        min_draws, max_draws: bounds on n; a window of ``max_draws`` steps whatever its gradient.
            None: no upper bound.
        accumulate: ``"grad"`` sums in ``.grad``, which only the wrapper may clear: set to None, it
            is an error at ``step`` and ``flush``.  ``step`` cannot see that it was zeroed in place,
            by ``model.zero_grad(set_to_none=False)``, or cleared under
            ``DDP(gradient_as_bucket_view=True)``: the draws before are lost then.  ``"buffer"``
            sums in float32 beside it (one more gradient in memory; a bad draw is dropped alone)
            and does not mind.  The tensors that it finds in ``.grad`` become its own: clone what
            you keep.  None: ``"buffer"`` when a parameter is 16-bit, whose own sums would round
            small terms away, else ``"grad"``.
        nonfinite: on NaN or inf ``"discard"`` the draw (with ``"grad"``: its window), ``"raise"``
            ``FloatingPointError``, or ``"ignore"`` (no check at all).
        grad_scaler: the ``torch.amp.GradScaler`` whose ``scale`` the losses go through.  The
            wrapper calls its ``unscale_``, ``step`` and ``update``, once a window.  A disabled one
            is as None.
        reduce_at_step: the loop leaves gradients local to each rank (``DDP.no_sync()``), and the
            wrapper averages them over the ranks once a step.  Only where the decision needs no
            gradient.
        tunables: initial values of the subclass's tunables, > 0.

    Under ``torch.distributed`` there is nothing else to configure: decisions are made from reduced
    gradients (DDP) and reduced norms (FSDP2's ``DTensor``), hence alike on all ranks.

    The host waits once for the norms of a draw.  Where the decision reads none, the check for NaN
    does: at each draw with a buffer, at a step without.  MHT and VGS wait once more, and so does a
    wrapper inside another for its own norms.

    Raises:
        TypeError: ``optimizer`` is not an ``Optimizer``, or is one that re-evaluates the loss.
        ValueError: an argument out of its range, or a tunable that the groups have already.
    """

    #: the least ``min_draws`` with which the decision makes sense
    fewest_draws: ClassVar[int] = 1
    #: does the decision read the norm of each draw alone?
    needs_draw_norm: ClassVar[bool] = False
    #: does the decision need the gradient (reduced over all ranks)?
    needs_gradient: ClassVar[bool] = True

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        min_draws: int | None = None,
        max_draws: int | None = 64,
        accumulate: str | None = None,
        nonfinite: str = "discard",
        grad_scaler: torch.amp.GradScaler | None = None,
        reduce_at_step: bool = False,
        **tunables: float,
    ) -> None:
        self.reduce_at_step = reduce_at_step
        self.min_draws = self.fewest_draws if min_draws is None else min_draws
        self.max_draws = max_draws
        self.nonfinite = nonfinite
        self.grad_scaler = amp.enabled(grad_scaler)
        options.check_draws(type(self).__name__, self.fewest_draws, self.min_draws, self.max_draws)
        options.check_tunables(tunables)
        options.check_ways(self, accumulate)
        super().__init__(optimizer, "buffer" if self.needs_draw_norm else accumulate, tunables)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Read by ``GradScaler.step(optimizer)``: the place to refuse it.

        It would unscale earlier draws once more at each, and skip an overflow but leave it in the
        sum, after which no step ever happens.

        Raises: RuntimeError: always, but when an outer wrapper passes a closed window on.
        """
        if self._is_wrapped:
            return False
        raise RuntimeError(
            f"GradScaler.step({type(self).__name__}): unscale a window once, when it closes. Pass "
            "grad_scaler=scaler to the wrapper and call wrapper.step() alone, without "
            "scaler.step() and scaler.update()"
        )

    def is_full(self) -> bool:
        """Has the window ``max_draws``, and steps now whatever ``should_step`` says?"""
        return self.max_draws is not None and self.num_draws >= self.max_draws

    def should_step(self) -> bool:
        """Is :math:`G_n` good enough?  May read ``num_draws``, ``grad_norm`` and ``draw_norm``."""
        return True

    def needs_grad_norm(self) -> bool:
        """Will this draw's decision read ``grad_norm``?  It costs a pass over the gradient."""
        return False

    def measure(self, totals: list[Tensor]) -> Tensor:
        """What such a decision reads of :math:`A_n`: its norm, then maybe ``tensor_norms``."""
        return total_norm(totals)

    def transform(self) -> None:
        """Change ``.grad``, which holds :math:`G_n`, before the wrapped optimizer steps."""

    def observe_metric(self, metric: float | Tensor | None) -> bool:
        """Take in this draw's metric; False refuses the draw."""
        return True

    def before_draw(self) -> None:
        """Before anything is changed: the place to refuse a call with an error."""

    def on_draw(self) -> None:
        """After a draw was accepted, before the decision."""

    def on_close(self, stepped: bool) -> None:
        """After a window was closed and handed on, or thrown away."""

    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        metric: float | Tensor | None = None,
    ) -> bool:
        """Add the microbatch whose gradient is in ``.grad``; step if the window is good enough.

        Args:
            closure: called once, with gradients enabled, to make this microbatch's gradient.
            metric: this microbatch's loss or another metric; only a wrapper that decides by a
                metric reads it.  A wrapper inside this one gets the mean over the window.
        Returns: did the wrapped optimizer step?  One that is a wrapper may only have drawn.
        Raises:
            RuntimeError: no parameter has a gradient, or the window's was cleared from outside, or
                this draw's was unscaled already.
            FloatingPointError: NaN or inf with ``nonfinite="raise"``.
            TypeError: a sparse gradient.
        """
        for pre_hook in self._optimizer_step_pre_hooks.values():
            pre_hook(self, (), {} if closure is None else {"closure": closure})
        if closure is not None:
            with torch.enable_grad():
                closure()
        params = self._params()
        stepped = False
        if self._draw(params, metric):
            ready = self.num_draws >= self.min_draws and self.should_step()
            if ready or self.is_full():
                stepped = self._close(params, forced=not ready)
        if not stepped:
            self._mark_called()
        for hook in self._optimizer_step_post_hooks.values():
            hook(self, (), {})
        return stepped

    # torch wraps step() to run the hooks that are registered for all optimizers: here the wrapped
    # optimizer's own step runs those, once a step rather than once a draw.
    step.hooked = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients between windows; in an open window keep them, and warn once."""
        if self.num_draws == 0:
            self.optimizer.zero_grad(set_to_none=set_to_none)
            return
        self._warn_once(
            f"zero_grad() was ignored: {self.num_draws} draws wait for a step, after which the "
            "wrapper clears gradients itself. Remove the call; discard() drops a window on purpose"
        )

    def discard(self) -> None:
        """Throw the open window away."""
        self._window.clear(self._params())
        self._end_window(stepped=False)

    def flush(self) -> bool:
        """Step with the draws there are (at the end of an epoch); False where there are none.

        Of wrappers inside one another each has a window to flush, the outer one first.

        Raises: RuntimeError: ``.grad`` is not as the last draw left it.
        """
        if self.num_draws == 0:
            return False
        params = self._params()
        self._window.check(params)
        return self._close(params, forced=False)

    def _draw(self, params: list[Tensor], metric: float | Tensor | None) -> bool:
        """Add ``.grad`` to the window; False where the draw was refused."""
        self.before_draw()
        if self.grad_scaler is not None:
            amp.refuse_unscaled(self.grad_scaler, self, self.optimizer)
        if self.num_draws == 0 and len(params) != self._num_params:  # a group was added
            self._window = self._new_window()
        window, norms = self._window, {}
        staged = window.stage(params)
        self._counts["batches"] += 1
        window.num_draws += 1
        if staged and (self.needs_draw_norm or (self._is_checked() and not self.reduce_at_step)):
            norms["draw_norm"] = total_norm(staged)
        window.merge()
        if self.num_draws >= self.min_draws and self.needs_grad_norm():
            norms["grad_norm"] = self.measure(window.totals(params))
        self._read(norms)
        if not self._accept(params):
            self._refuse(params, overflow=True)
            return False
        if not self.observe_metric(metric):
            self._refuse(params, overflow=False)
            return False
        window.commit(params)
        if self.draw_norm is not None:
            window.draw_norms.append(self.draw_norm)
        if isinstance(self.optimizer, OptimizerWrapper):
            window.add_metric(metric)
        self.on_draw()
        return True

    @torch.no_grad()
    def _close(self, params: list[Tensor], forced: bool) -> bool:
        """Hand :math:`G_n` to the wrapped optimizer."""
        if self.reduce_at_step:
            window = self._window
            window.replace(params, average_over_ranks(params, window.sums(params), window.zeros))
        if self._must_check():
            self._read({"grad_norm": total_norm(self._window.totals(params))})
            if not self._accept(params):
                self._refuse(params, overflow=True)
                return False
        self._window.close(params)
        stepped = self._step_wrapped()
        self._counts["steps"] += stepped
        self._counts["num_forced"] += forced and stepped
        n, norms = self.num_draws, self._window.draw_norms
        draw_norms = tuple(norms) if len(norms) == n else ()
        self.last_window = ClosedWindow(n, self.grad_norm, draw_norms, is_forced=forced)
        self._window.clear(params)
        self._end_window(stepped=True)
        return stepped

    def _step_wrapped(self) -> bool:
        """False where that is a wrapper, for which this window is a draw, and it waits for more."""
        inner: Any = self.optimizer
        metric = {}
        if isinstance(inner, OptimizerWrapper) and self._window.metric_sum is not None:
            metric["metric"] = self._window.metric_sum / self.num_draws
        if self.grad_scaler is None:
            self.transform()
            return inner.step(**metric) is not False
        self.grad_scaler.unscale_(inner)
        self.transform()
        stepped = self.grad_scaler.step(inner, **metric) is not False
        self.grad_scaler.update()
        return stepped

    def _read(self, norms: dict[str, Tensor]) -> None:
        """The draw's one host sync: all the norms that it needs in one transfer, unscaled."""
        self._forget_norms()
        if not norms:
            return
        tensors = list(norms.values())
        values = torch.hstack(tensors) if len(tensors) > 1 else tensors[0]
        if self.grad_scaler is not None:
            values = amp.unscaled(self.grad_scaler, values)
        read = values.tolist() if values.dim() else [values.item()]
        if "draw_norm" in norms:
            self.draw_norm = read.pop(0)
        if "grad_norm" in norms:
            self.grad_norm, *self.tensor_norms = [norm / self.num_draws for norm in read]

    def _accept(self, params: list[Tensor]) -> bool:
        """Are the norms just read finite, or too large to square though each element is finite?"""
        if not self._is_checked():
            return True
        norms = [norm for norm in (self.draw_norm, self.grad_norm) if norm is not None]
        return all(map(math.isfinite, norms)) or not count_nonfinite(self._window.totals(params))

    def _refuse(self, params: list[Tensor], *, overflow: bool) -> None:
        """Drop the draw (its whole window where draws cannot be told apart)."""
        if overflow and self.nonfinite == "raise" and self.grad_scaler is None:
            self._raise_nonfinite(params)
        if overflow and self.grad_scaler is not None:
            amp.back_off(self.grad_scaler, self.optimizer, self._window, params)
        # With reduce_at_step ranks agree on windows, not on draws.
        forget = self._window.clear if self.reduce_at_step else self._window.refuse
        lost = forget(params)
        self._counts["num_discarded"] += lost
        if overflow and self.grad_scaler is None:
            self._warn_once(
                f"a NaN or infinite gradient in microbatch {self._counts['batches']}: {lost} draws "
                "discarded (counted in num_discarded; this warning comes once)"
            )
        self._forget_norms()
        if self.num_draws == 0:
            self._end_window(stepped=False)

    def _raise_nonfinite(self, params: list[Tensor]) -> None:
        self._window.num_draws -= self._window.expose(params)
        bad = [i for i, p in enumerate(params) if p.grad is not None and count_nonfinite([p.grad])]
        message = (
            f"NaN or infinite gradient in microbatch {self._counts['batches']}, parameters "
            f"{bad[:5]}: left in .grad to look at; discard() drops the window"
        )
        raise FloatingPointError(message)

    def _must_check(self) -> bool:
        """Is this the first look at the gradient to be stepped with?"""
        first_look = self.grad_norm is None and self._window.is_unchecked
        return self._is_checked() and (first_look or self.reduce_at_step)

    def _is_checked(self) -> bool:
        return self.nonfinite != "ignore" or self.grad_scaler is not None

    def _end_window(self, *, stepped: bool) -> None:
        self._window = self._new_window()
        self._forget_norms()
        self.on_close(stepped)
