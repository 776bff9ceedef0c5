r"""The base of the optimizer wrappers: draw microbatches until the gradient is good enough to step.

Notation: :math:`n` draws (microbatches since the last step), :math:`g_i` the gradient of draw i,
:math:`A_n=\sum_{i\le n} g_i`, :math:`G_n=A_n/n` (with weights: :mod:`gqc.wrappers.draws`).  After
each ``backward`` the loop calls :meth:`OptimizerWrapper.step`; the wrapper adds the draw, reads the
norms its decision needs (one host sync), and either waits for one more draw or hands :math:`G_n` to
the wrapped optimizer.

A new wrapper subclasses :class:`OptimizerWrapper` and overrides ``should_step`` (when to step) or
``transform`` (how to change :math:`G_n`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.gradients import collect, total_norm
from gqc.wrappers import amp, options
from gqc.wrappers.draws import ClosedWindow
from gqc.wrappers.ranked import RankedOptimizer
from gqc.wrappers.rescale import clip_
from gqc.wrappers.weights import weigh


class OptimizerWrapper(RankedOptimizer):
    """Step ``optimizer`` only when the gradient accumulated so far is good enough.

    It is a ``torch.optim.Optimizer`` whose ``param_groups``, ``state`` and ``defaults`` are those
    of the wrapped one.  Tunables live in ``param_groups`` under their own names, so that schedules
    reach them and checkpoints hold them; with several groups the strictest value decides.

    Args:
        optimizer: any torch optimizer that steps in one call (not LBFGS).
        tunables: the subclass's, with initial values > 0; a group that has its own keeps it.
        min_draws, max_draws: bounds on n; a window of ``max_draws`` steps whatever its gradient.
            None: no upper bound.
        decide_every: decide at n = ``min_draws`` and at every so many draws after it.
        accumulate: ``"buffer"`` takes each gradient out of ``.grad`` and sums in float32 beside it:
            one more gradient in memory; a bad draw is dropped alone; clearing or clipping ``.grad``
            acts on the draw in progress alone.  The tensors that it finds there become its own:
            clone what you keep.  ``"grad"`` sums in ``.grad`` itself, which nobody else may touch:
            clearing it in an open window, changing it in place after ``backward`` and gradients
            that ``backward`` did not make are errors (:mod:`gqc.wrappers.watch` says what cannot
            be seen), and sums have the dtype of the parameters.
        loss: what ``backward`` is called on, the ``"mean"`` or the ``"sum"`` over a microbatch's
            tokens (or examples); with ``step(weight=num_tokens)`` both give the mean over the
            window's.  Mean losses of unequal weights need the buffer.
        clip_norm: clip what the wrapped optimizer gets to this norm, after the decision has read
            the true one; counted as ``num_clipped``.
        nonfinite: on NaN or inf ``"discard"`` the draw (with ``"grad"``: its window), ``"raise"``
            ``FloatingPointError``, or ``"ignore"`` (no check at all).
        grad_scaler: the ``torch.amp.GradScaler`` whose ``scale`` the losses go through.  The
            wrapper calls its ``unscale_``, ``step`` and ``update``, once a window.  A disabled one
            is as None.
        reduce_at_step: the loop leaves gradients local to each rank (``DDP.no_sync()``), and the
            wrapper averages them over the ranks once a step.  Only where the decision needs no
            gradient.
        process_group: the ranks that train these parameters together, where the loop averages
            gradients itself.  None: those of the DDP or FSDP modules that hold the parameters.
        on_step: called after each step with the numbers of the closed window (``numbers()``).

    Under ``torch.distributed`` there is nothing else to configure: decisions are made from reduced
    gradients (DDP) and reduced norms (FSDP2's ``DTensor``), hence alike on all ranks.  The first
    two norms that are decided by are compared over the ranks; gradients that become local later on
    are seen inside ``DDP.no_sync()`` only.

    The host waits once for the norms of a draw.  Where the decision reads none, the check for NaN
    does: at each draw with a buffer, at a step without.  MHT and VGS wait once more, and so do
    ``clip_norm`` where no norm was read, a weight where there are several ranks, and a
    wrapper inside another for its own norms.

    Raises:
        TypeError: ``optimizer`` is not an ``Optimizer``, or is one that re-evaluates the loss.
        TypeError: an argument that the wrapper does not have; the message names the nearest.
        ValueError: an argument out of its range, or a tunable of a wrapper inside this one.
    """

    #: the least ``min_draws`` with which the decision makes sense
    fewest_draws: int = 1

    def __init__(
        self,
        optimizer: Optimizer,
        tunables: Mapping[str, float] | None = None,
        *,
        min_draws: int | None = None,
        max_draws: int | None = 64,
        decide_every: int = 1,
        accumulate: str = "buffer",
        loss: str = "mean",
        clip_norm: float | None = None,
        nonfinite: str = "discard",
        grad_scaler: torch.amp.GradScaler | None = None,
        reduce_at_step: bool = False,
        process_group: Any = None,
        on_step: Callable[[dict[str, float]], object] | None = None,
    ) -> None:
        self.loss, self.nonfinite, self.reduce_at_step = loss, nonfinite, reduce_at_step
        self.min_draws, self.max_draws = options.check_draws(self, min_draws, max_draws)
        self.decide_every = options.whole("decide_every", decide_every, 1)
        self.clip_norm, self.on_step = clip_norm, on_step
        self.grad_scaler = amp.enabled(grad_scaler)
        options.check_ways(self, accumulate, clip_norm)
        super().__init__(optimizer, tunables or {}, accumulate, process_group)

    def is_full(self) -> bool:
        """Has the window ``max_draws``, and steps now whatever ``should_step`` says?"""
        return self.max_draws is not None and self.num_draws >= self.max_draws

    def should_step(self) -> bool:
        """Is :math:`G_n` good enough?  May read ``num_draws``, ``grad_norm`` and ``draw_norm``."""
        return True

    def needs_grad_norm(self) -> bool:
        """Will this draw's decision read ``grad_norm``?  It costs a pass over the gradient."""
        return False

    def transform(self) -> None:
        """Change ``.grad``, which holds :math:`G_n`, before the wrapped optimizer steps."""

    @property
    def changes_gradient(self) -> bool:
        """Does ``transform`` read the mean gradient, and change it?"""
        return type(self).transform is not OptimizerWrapper.transform

    def observe_metric(self, metric: float | Tensor | None) -> bool:
        """Take in this draw's metric; False refuses the draw."""
        return True

    def before_draw(self) -> None:
        """Before anything is changed: the place to refuse a call with an error."""

    def on_staged(self, staged: list[Tensor]) -> None:
        """Look at :math:`g_i` alone, in a buffer, before it is added."""

    def on_draw(self) -> None:
        """After a draw was accepted, before the decision."""

    # torch.compile loses what a traced step() assigns to attributes of an Optimizer.
    @torch._disable_dynamo
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        weight: float | Tensor | None = None,
        metric: float | Tensor | None = None,
    ) -> bool:
        """Add the microbatch whose gradient is in ``.grad``; step if the window is good enough.

        Args:
            closure: called once, with gradients enabled, to make this microbatch's gradient.
            weight: tokens or examples of this rank's microbatch, > 0; the window's mean is that
                over all of them.  None: as much as each other draw.
            metric: this microbatch's loss or another metric; only a wrapper that decides by a
                metric reads it.  A wrapper inside this one gets the mean over the window.
        Returns: did the wrapped optimizer step?  One that is a wrapper may only have drawn.
        Raises:
            RuntimeError: no parameter has a gradient, or the window's was cleared or changed from
                outside, or this draw's was unscaled already.
            FloatingPointError: NaN or inf with ``nonfinite="raise"``.
            TypeError: a sparse gradient, or a metric in the place of the closure.
            ValueError: a weight out of its range, or that the gradients cannot be weighed with.
        """
        options.check_closure(self, closure)
        if self._is_asked_for_state():
            return False
        given = {"closure": closure, "weight": weight, "metric": metric}
        args: tuple[Any, ...] = (self,)
        kwargs: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        if self._optimizer_step_pre_hooks:
            args, kwargs = self._run_pre_hooks(args, kwargs)
        if (make_gradient := kwargs.get("closure")) is not None:
            with torch.enable_grad():
                make_gradient()
        stepped = False
        if self._draw(kwargs.get("weight"), kwargs.get("metric")):
            ready = self._decides() and self.should_step()
            if ready or self.is_full():
                stepped = self._close(forced=not ready)
        if not stepped:
            self._mark_called()
        for hook in self._optimizer_step_post_hooks.values():
            hook(self, args, kwargs)
        return stepped

    # torch wraps step() to run the hooks that are registered for all optimizers: here the wrapped
    # optimizer's own step runs those, once a step rather than once a draw.
    step.hooked = True  # type: ignore[attr-defined]

    def may_close(self, weight: float) -> bool:
        """Can a coming draw of that weight be the last, by what is known before it?"""
        return True

    def closes_next(self, weight: float | None = None) -> bool:
        """May the coming draw close the window, and must be reduced over the ranks?

        For loops that communicate only then; all other draws stay local, in DDP's ``no_sync()``
        (with ``accumulate="grad"``) or with FSDP2's ``set_requires_gradient_sync(False)``, whose
        draws have no ``.grad`` until then.  SBC and Replay know it exactly, GNS too; the others may
        close at each ``decide_every``-th draw.

        Args:
            weight: of the coming draw, where ``step`` will be given one.
        Raises: RuntimeError: local draws would stay local in the buffer; the message says what to
            pass.
        """
        n, share = self.num_draws + 1, weight or self.default_weight
        is_last = self.max_draws is not None and n >= self.max_draws
        if is_last or (self._decides(n) and self.may_close(share)):
            return True
        self._may_defer = self._is_sharded()
        if (
            not (self._may_defer or self.sums_in_grad or self.reduce_at_step)
            and self.ranks.size > 1
        ):
            raise RuntimeError(
                'closes_next() with accumulate="buffer": draws that no_sync() keeps local would '
                'never be reduced. Pass accumulate="grad", or reduce_at_step=True and always '
                "no_sync()"
            )
        return False

    @torch._disable_dynamo
    def flush(self) -> bool:
        """Step with the draws there are (at the end of an epoch); False where there are none.

        Of wrappers inside one another each has a window to flush, the outer one first.

        Raises: RuntimeError: a gradient has come since the last draw, or ``.grad`` is not as that
            left it.
        """
        if self.num_draws == 0:
            return False
        self._window.follow(self._params())
        self._window.check_reduced()
        self._window.check()
        return self._close(forced=False)

    def _decides(self, num_draws: int | None = None) -> bool:
        """Is this draw (or the one of that number) one that the decision is made at?"""
        since = (self.num_draws if num_draws is None else num_draws) - self.min_draws
        return since >= 0 and since % self.decide_every == 0

    def _draw(self, weight: float | Tensor | None, metric: float | Tensor | None) -> bool:
        """Add ``.grad`` to the window; False where the draw was refused."""
        self.before_draw()
        if self.grad_scaler is not None:
            amp.refuse_unscaled(self.grad_scaler, self, self.optimizer)
        window, norms = self._window, {}
        window.follow(self._params())
        share, unit = weigh(self, weight, window.params[0].device)
        may_defer, self._may_defer = self._may_defer, False
        if may_defer and not window.has_new():
            self._defer(share, unit)
            return False
        staged = window.stage(self._watch)
        if staged:
            self.on_staged(staged)
        self._heed_changes()
        window.count(share, unit, weight is not None)
        self._counts["batches"] += 1
        reads_mean = self._decides() and self.needs_grad_norm()
        checks_draw = self._is_checked() and not (self.reduce_at_step or reads_mean)
        if staged and (self.needs_draw_norm or checks_draw):
            norms["draw_norm"] = total_norm(staged)
        window.merge()
        if reads_mean:
            norms["grad_norm"] = self.measure(window.totals())
        self._read(norms)
        if reads_mean:
            self._compare()
        if not self._accept():
            self._refuse(overflow=True)
            return False
        if not self.observe_metric(metric):
            self._refuse(overflow=False)
            return False
        window.commit()
        if self.draw_norm is not None:
            window.draw_norms.append(self.draw_norm)
        if isinstance(self.optimizer, OptimizerWrapper):
            window.add_metric(metric)
        self.on_draw()
        return True

    @torch.no_grad()
    def _close(self, forced: bool) -> bool:
        """Hand :math:`G_n` to the wrapped optimizer."""
        window = self._window
        if self.reduce_at_step:
            self._reduce()
        if self._must_check():
            self._read({"grad_norm": total_norm(window.totals())})
            self._compare()
            if not self._accept():
                self._refuse(overflow=True)
                return False
        self._forget_first_state()
        window.close()
        stepped, is_clipped = self._hand_on()
        self._counts["steps"] += stepped
        self._counts["num_forced"] += forced and stepped
        self._counts["num_clipped"] += is_clipped
        n, norms = window.num_draws, window.draw_norms
        draw_norms = tuple(norms) if len(norms) == n else ()
        self.last_window = ClosedWindow(
            n, window.weight, self.grad_norm, draw_norms, forced, is_clipped
        )
        window.clear()
        self._end_window(stepped=True)
        if stepped and self.on_step is not None:
            self.on_step(self.numbers())
        return stepped

    def _hand_on(self) -> tuple[bool, bool]:
        """Step the wrapped optimizer.  Returns: did it step (a wrapper may wait)?  Clipped?"""
        inner: Any = self.optimizer
        window, given = self._window, {}
        if isinstance(inner, OptimizerWrapper):
            if window.metric_sum is not None:
                given["metric"] = window.metric_sum / window.weight
            if window.is_weighted:
                given["weight"] = window.weight / self.ranks.size
        scaler = self.grad_scaler
        if scaler is not None:
            scaler.unscale_(inner)
        self.transform()
        is_clipped = self._clip()
        if scaler is None:
            return inner.step(**given) is not False, is_clipped
        stepped = scaler.step(inner, **given) is not False
        scaler.update()
        return stepped, is_clipped

    def _clip(self) -> bool:
        """Clip what the wrapped optimizer gets to ``clip_norm``; False where it is small enough."""
        if self.clip_norm is None:
            return False
        norm = None if self.changes_gradient else self.grad_norm
        return clip_(collect(self._window.params), self.clip_norm, norm)
