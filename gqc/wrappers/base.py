r"""The base of the optimizer wrappers: draw microbatches until the gradient is good enough to step.

Notation: :math:`n` draws (microbatches since the last step), :math:`g_i` the gradient of draw i,
:math:`A_n=\sum_{i\le n} g_i`, :math:`G_n=A_n/n` (with weights: :mod:`gqc.wrappers.window`).  After
each ``backward`` the loop calls :meth:`OptimizerWrapper.step`; the wrapper adds the draw, reads the
norms its decision needs (one host sync), and either waits for one more draw or hands :math:`G_n` to
the wrapped optimizer.  Subclasses override ``should_step`` or ``transform``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gqc.checks import untraced
from gqc.clipping import clip_
from gqc.gradients import collect, is_sharded, total_norm
from gqc.ranks import ALONE, compare, is_on, weigh
from gqc.wrappers import options, overflow, report, saved
from gqc.wrappers.watch import CHANGED_DRAW, NO_GRAPH
from gqc.wrappers.windowed import WindowedOptimizer


class OptimizerWrapper(WindowedOptimizer):
    """Step ``optimizer`` only when the gradient accumulated so far is good enough.

    It is a ``torch.optim.Optimizer`` whose ``param_groups``, ``state`` and ``defaults`` are those
    of the wrapped one.  Tunables live in ``param_groups`` under their own names, so that schedules
    reach them and checkpoints hold them; with several groups the strictest value decides.

    Args:
        optimizer: any torch optimizer that steps in one call (not LBFGS).
        tunables: the subclass's, with initial values > 0; a group that has its own keeps it.
        options: those of :class:`~gqc.wrappers.options.WindowOptions`, and ``max_draws``: a window
            of so many draws steps whatever its gradient; None: no upper bound.

    Under ``torch.distributed`` there is nothing else to configure: decisions are made from reduced
    gradients (DDP) and reduced norms (FSDP2's ``DTensor``), hence alike on all ranks.  The first
    two norms that are decided by are compared over the ranks; gradients that become local later on
    are seen inside ``DDP.no_sync()`` only.

    The host waits once for the norms of a draw.  Where the decision reads none, the check for NaN
    does: at each draw with a buffer, at a step without.  MHT and VGS wait once more, and so do
    ``clip_norm`` where no norm was read, a weight where there are several ranks, and a
    wrapper inside another for its own norms.

    Raises:
        TypeError: no ``Optimizer``, one that re-evaluates the loss, or an unknown argument.
        ValueError: an argument out of its range, or one of its kind or with its tunable inside.
    """

    _may_defer = False  # may the coming draw come without a gradient?

    def is_full(self) -> bool:
        """Has the window ``max_draws``, and steps now whatever ``should_step`` says?"""
        return self.max_draws is not None and self._window.num_draws >= self.max_draws

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

    def measure(self, totals: list[Tensor]) -> Tensor:
        """What such a decision reads of :math:`A_n`: its norm, then maybe ``tensor_norms``."""
        return self._window.norm(totals)

    def observe_metric(self, metric: float | Tensor | None) -> bool:
        """Take in this draw's metric; False refuses the draw."""
        return True

    def before_draw(self) -> None:
        """Before anything is changed: the place to refuse a call with an error."""

    def on_staged(self, staged: list[Tensor]) -> None:
        """Look at :math:`g_i` alone, in a buffer, before it is added."""

    def on_draw(self) -> None:
        """After a draw was accepted, before the decision."""

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
        if closure is not None and not callable(closure):
            self._window.leave()
            raise TypeError(
                f"step({closure!r}): the first argument of {type(self).__name__}.step is a "
                "closure; call step(metric=loss) or step(weight=num_tokens)" + options.PUBLISHED
            )
        # torch.compile loses what a traced step() assigns to attributes of an Optimizer.
        run = self._run_untraced if torch.compiler.is_dynamo_compiling() else self._run
        return run(closure, weight, metric)

    def _run(self, closure: Any, weight: Any, metric: Any) -> bool:
        if self._ranks is not ALONE and is_on() and saved.answers(self):
            return False
        args: tuple[Any, ...] = (self,)
        kwargs: dict[str, Any] = {}
        if self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks:
            given = {"closure": closure, "weight": weight, "metric": metric}
            kwargs = {k: v for k, v in given.items() if v is not None}
            args, kwargs = self._run_pre_hooks(args, kwargs)
            closure, weight, metric = map(kwargs.get, given)
        stepped = False
        try:
            if closure is not None:
                with torch.enable_grad():
                    closure()
            is_drawn = self._draw(weight, metric)
        except BaseException:
            self._window.leave()
            raise
        if is_drawn:
            ready = self._decides(self.num_draws) and self.should_step()
            if ready or self.is_full():
                stepped = self._close(forced=not ready)
        if not stepped:
            self._mark_called()
        try:
            for hook in self._optimizer_step_post_hooks.values():
                hook(self, args, kwargs)
        finally:  # the step is made, whatever a hook does
            self._tell(stepped)
        return stepped

    _run_untraced = torch._disable_dynamo(_run)

    # torch wraps step() to run the hooks that are registered for all optimizers: here the wrapped
    # optimizer's own step runs those, once a step rather than once a draw.
    step.hooked = True  # type: ignore[attr-defined]

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Read by ``GradScaler.step(optimizer)``, which would unscale earlier draws once more."""
        if not self._is_wrapped:
            raise RuntimeError(
                f"GradScaler.step({type(self).__name__}): unscale a window once, when it closes. "
                "Pass grad_scaler=scaler to the wrapper and call wrapper.step() alone, without "
                "scaler.step() and scaler.update()"
            )
        return False  # an outer wrapper passes a closed window on

    def may_close(self, weight: float) -> bool:
        """Can a coming draw of that weight be the last, by what is known before it?"""
        return True

    def closes_next(self, weight: float | None = None) -> bool:
        """May the coming draw close the window, and must be reduced over the ranks?

        For loops that communicate only then; all other draws stay local, in DDP's ``no_sync()``
        (with ``accumulate="grad"``) or with FSDP2's ``set_requires_gradient_sync(False)``.  SBC,
        Replay, and GNS and NormTest by past windows know it exactly; the others may close at each
        ``decide_every``-th draw.

        Args:
            weight: of this rank's coming draw, where ``step`` will be given one.
        Raises: RuntimeError: local draws would stay local in the buffer.
        """
        n, share, params = self.num_draws + 1, self.default_weight, self._params()
        if weight is not None:
            share = self.ranks.sum([float(weight)], params[0].device)[0]
        is_last = self.max_draws is not None and n >= self.max_draws
        closes = is_last or (self._decides(n) and self.may_close(share))
        self._may_defer = not closes and is_sharded(params)
        self._window.is_local = not (closes or self._may_defer)
        are_reduced = not self._window.is_local or self.sums_in_grad or self.reduce_at_step
        if not are_reduced and self.ranks.size > 1:
            raise RuntimeError(
                'closes_next() with accumulate="buffer": what no_sync() keeps local would never be '
                'reduced. Pass accumulate="grad", or reduce_at_step=True and always no_sync()'
            )
        return closes

    @untraced
    def flush(self) -> bool:
        """Step with the draws there are (at the end of an epoch); False where there are none.

        Of wrappers inside one another each has a window to flush, the outer one first.

        Raises: RuntimeError: a gradient has come, or ``.grad`` was changed, since the last draw.
        """
        if self.num_draws == 0:
            return False
        self._window.follow(self._params())
        self._window.check()
        if self.grad_scaler is not None:
            overflow.check_scale(self)
        stepped = self._close(forced=False)
        self._tell(stepped)
        return stepped

    def _tell(self, stepped: bool) -> None:
        """Tell ``on_step`` of the window that closed, when attached schedules have moved."""
        if stepped and self.on_step is not None:
            self.on_step(self.numbers())

    def _decides(self, n: int) -> bool:
        """Is the draw of that number one that the decision is made at?"""
        since = n - self.min_draws
        return n == self.max_draws or (since >= 0 and since % self.decide_every == 0)

    def _run_pre_hooks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Run this wrapper's hooks; what they make of a gradient is meant, unless it is a sum."""
        watch, params = self._window.watch, self._params()
        is_blind = watch is None or self.holds_running_sum or not watch.is_of(params)
        if is_blind or watch.was_changed([p.grad for p in params]):  # by somebody else
            watch = None
        for pre_hook in self._optimizer_step_pre_hooks.values():
            args, kwargs = pre_hook(self, args, kwargs) or (args, kwargs)
        if watch is not None:
            watch.note()
        return args, kwargs

    def _draw(self, weight: float | Tensor | None, metric: float | Tensor | None) -> bool:
        """Add ``.grad`` to the window; False where the draw was refused."""
        if self.grad_scaler is not None:
            overflow.check_scale(self)
        self.before_draw()
        window, norms = self._window, {}
        window.follow(self._params())
        share, unit = weigh(self, weight)
        may_defer, self._may_defer = self._may_defer, False
        if may_defer and not window.has_new():
            window.defer(share, unit, weight is not None)
            self._counts["batches"] += 1
            window.lacks_metric |= not self._takes_metric(metric)
            return False
        staged = window.stage()
        if window.was_changed and self.needs_gradient:
            self._warn_once(CHANGED_DRAW.format(type(self).__name__))
        window.count(share, unit, weight is not None)
        if staged:
            self.on_staged(staged)
        self._counts["batches"] += 1
        reads_mean = self._decides(window.num_draws) and self.needs_grad_norm()
        checks_draw = self._is_checked() and not (self.reduce_at_step or reads_mean)
        if staged and (self.needs_draw_norm or checks_draw):
            norms["draw_norm"] = window.norm(staged)
        window.merge()
        if reads_mean:
            norms["grad_norm"] = self.measure(window.totals())
        has_finite_norms = self._read(norms)
        if reads_mean and self._ranks is not ALONE:
            compare(self)
        if not has_finite_norms and not self._is_finite():
            overflow.refuse(self, overflow=True)
            return False
        if not self._takes_metric(metric) or window.lacks_metric:
            overflow.refuse(self, overflow=False)
            return False
        window.commit()
        self.on_draw()
        return True

    def _takes_metric(self, metric: float | Tensor | None) -> bool:
        """Take in a counted draw's metric, for a wrapper inside too; False refuses the draw."""
        is_taken = self.observe_metric(metric)
        if is_taken and isinstance(self.optimizer, OptimizerWrapper):
            self._window.add_metric(metric)
        return is_taken

    @torch.no_grad()
    def _close(self, forced: bool) -> bool:
        """Hand :math:`G_n` to the wrapped optimizer."""
        window = self._window
        self.reduce_pending()
        if self._must_check():
            has_finite_norm = self._read({"grad_norm": total_norm(window.totals())})
            compare(self)
            if not has_finite_norm and not self._is_finite():
                overflow.refuse(self, overflow=True)
                return False
        if self._has_first_state:  # made as if nobody had asked for it before
            self.innermost.state.clear()
            self._has_first_state = False
        now = report.settings(self)
        try:
            window.close()
            stepped, is_clipped = self._hand_on()
        except BaseException:  # of a hook, or an interrupt: no later window may hold this mean
            self.discard()
            if self.grad_scaler is not None:  # the next window is unscaled again
                self.grad_scaler._per_optimizer_states.pop(id(self.optimizer), None)
            raise
        self._counts["steps"] += stepped
        self._counts["num_forced"] += forced and stepped
        self._counts["num_clipped"] += is_clipped
        last = window.num_draws, window.weight, self.grad_norm, forced, is_clipped
        self.last_window = report.ClosedWindow(*last, now)
        window.clear()
        self._end_window(stepped=True)
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
        if (scaler := self.grad_scaler) is not None:
            scaler.unscale_(inner)
        self.transform()
        is_clipped = False
        if self.clip_norm is not None:
            norm = None if self.changes_gradient else self.grad_norm
            is_clipped = clip_(collect(window.params), self.clip_norm, norm)
        try:
            answer = inner.step(**given) if scaler is None else scaler.step(inner, **given)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise RuntimeError(NO_GRAPH) from error
        if scaler is not None:
            scaler.update()
        return answer is not False or not isinstance(inner, OptimizerWrapper), is_clipped
