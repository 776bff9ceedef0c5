"""What a wrapper keeps between two draws: the open window, counters, a record of the last window.

When a window closes is :mod:`gqc.wrappers.base`, where its sum lies :mod:`gqc.wrappers.window`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer

from gqc.wrappers import amp
from gqc.wrappers.delegate import DelegatingOptimizer
from gqc.wrappers.draws import ClosedWindow, check_shapes, shard
from gqc.wrappers.watch import GradientWatch
from gqc.wrappers.window import BufferWindow, GradWindow, Window

COUNTERS = ("batches", "steps", "num_discarded", "num_forced", "num_clipped")


CHANGED = (
    ".grad was changed in place between backward() and step(), as clipping, noise and decay do: it "
    "holds the sum of all draws, and each change would act on the earlier ones again. To clip what "
    'the optimizer steps with pass clip_norm= to the wrapper; else pass accumulate="buffer"'
)
CHANGED_DRAW = (
    "gradients were changed in place between backward() and step(), as by clip_grad_norm_: {} "
    "decides by the norms of what that left. To clip what the optimizer steps with pass "
    "clip_norm= to the wrapper (this warning comes once)"
)
NO_BACKWARD = (
    ".grad has no gradient of a loss.backward() since the last step(): call it before step(). "
    'Gradients that are made by hand need accumulate="buffer"'
)
CLEARED = (
    "zero_grad() after a backward() in an open window: {} draws wait for a step in .grad, which "
    'cannot give this microbatch back. Pass accumulate="buffer", where the call forgets it '
    "alone; discard() drops the window"
)


class WindowedOptimizer(DelegatingOptimizer):
    """Draws that wait for a step: counted, reported, saved in mid-window."""

    #: does the decision need the gradient (reduced over all ranks)?
    needs_gradient: ClassVar[bool] = True
    #: is the default weight of a draw its number of examples?
    counts_examples: ClassVar[bool] = False
    #: weight of a draw that is given none
    default_weight: float = 1.0
    loss = "mean"
    on_step: Callable[[dict[str, float]], object] | None = None  # as hooks, it is not copied
    _is_wrapped = False  # by an outer wrapper
    _may_defer = False  # may the coming draw come without a gradient?

    def __init__(
        self, optimizer: Optimizer, tunables: Mapping[str, float], accumulate: str
    ) -> None:
        inner = optimizer if isinstance(optimizer, WindowedOptimizer) else None
        if inner is not None and inner.num_draws:
            raise RuntimeError(
                f"{type(inner).__name__} has {inner.num_draws} pending draws: flush() or discard() "
                "them before it is wrapped"
            )
        if inner is not None and inner.loss != "mean":
            raise ValueError(
                f"loss={inner.loss!r} of a wrapper inside another, which hands on means: give "
                'loss="sum" to the outer one alone'
            )
        super().__init__(optimizer, tunables)
        if inner is not None:
            inner.become_inner()
        self.last_window: ClosedWindow | None = None
        self.grad_norm: float | None = None  #: norm of G_n, if this draw read it
        self.draw_norm: float | None = None  #: norm of g_n, if this draw read it
        self.tensor_norms: list[float] = []  #: norm of each tensor of G_n, if this draw read them
        self._counts = dict.fromkeys(COUNTERS, 0)
        self._accumulate = accumulate
        self._open()

    @property
    def num_draws(self) -> int:
        """n, draws in the open window."""
        return self._window.num_draws

    @property
    def last_num_draws(self) -> int | None:
        """n of the last closed window, as torch-gqc has it."""
        return None if self.last_window is None else self.last_window.num_draws

    @property
    def last_grad_norm(self) -> float | None:
        """Norm of the last closed window's :math:`G_n`, None where it was not read."""
        return None if self.last_window is None else self.last_window.grad_norm

    @property
    def holds_running_sum(self) -> bool:
        """Is ``.grad`` the sum of earlier draws, so that changing it would change those again?"""
        return self.num_draws > 0 and self.sums_in_grad

    @property
    def sums_in_grad(self) -> bool:
        """Is it ``accumulate="grad"``?"""
        return self._accumulate == "grad"

    @property
    def weight(self) -> float:
        """W, weights of the draws in the open window; n where they are given none."""
        return self._window.weight

    @property
    def unit(self) -> float:
        """What the open window's sum is kept in (:mod:`gqc.wrappers.draws`)."""
        return self._window.unit

    @property
    def changes_gradient(self) -> bool:
        """Does ``transform`` read the mean gradient, and change it?"""
        raise NotImplementedError

    def become_inner(self) -> None:
        """Leave ``.grad`` to an outer wrapper, which sums its own draws there."""
        self._accumulate = "buffer"
        self._is_wrapped = True
        self._open()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Read by ``GradScaler.step(optimizer)``: where to refuse it."""
        if not self._is_wrapped:
            amp.refuse_step(type(self).__name__)
        return False  # an outer wrapper passes a closed window on

    def statistics(self) -> dict[str, Any]:
        """All there is to log.

        ``batches`` and ``num_draws`` count the microbatch in progress: read before ``step()``, they
        are 1 at the start, and ``num_draws`` is n at the step that closes a window of n.

        - ``batches``, ``steps``: microbatches (with the one in progress), optimizer steps (those of
          the innermost one, where a wrapper is wrapped).
        - ``num_draws``, ``last_num_draws``: n of the open and of the last closed window.
        - ``last_grad_norm``: norm of that window's :math:`G_n`, None where it was not read.
        - ``num_discarded``: microbatches thrown away for NaN or inf.
        - ``num_forced``: steps taken only because n reached ``max_draws``.
        - ``num_clipped``: windows that were clipped to ``clip_norm``.
        - each tunable: the value that decides; with several groups also ``key/group_i``.
        - ``lr``: of the first group; with several groups also ``lr/group_i``.
        """
        groups = self.param_groups
        values: dict[str, Any] = {
            **self._counts,
            "batches": self._counts["batches"] + 1,
            "num_draws": self.num_draws + 1,
            "last_num_draws": self.last_num_draws,
            "last_grad_norm": self.last_grad_norm,
            **{name: self.tunable(name) for name in self.strictest},
        }
        if groups and "lr" in groups[0]:
            values["lr"] = float(groups[0]["lr"])
        if len(groups) > 1:
            for i, group in enumerate(groups):
                keys = [name for name in (*self.strictest, "lr") if name in group]
                values.update({f"{name}/group_{i}": float(group[name]) for name in keys})
        return values

    def numbers(self) -> dict[str, float]:
        """The numbers of the last closed window, for loggers: no None, no bool, no coming draw.

        As :meth:`statistics`, with ``batches`` and ``num_draws`` up to and in that window, and
        ``weight``, ``grad_norm`` (left out where it was not read), ``is_forced``, ``is_clipped``.
        """
        values = {**self.statistics(), "batches": self._counts["batches"]}
        del values["last_num_draws"], values["last_grad_norm"]
        if self.last_window is not None:
            values.update(vars(self.last_window), draw_norms=None)
        kept = {k: v for k, v in values.items() if isinstance(v, (int, float))}
        return {k: int(v) if isinstance(v, bool) else v for k, v in kept.items()}

    def vital_statistics(self) -> dict[str, Any]:
        """The short set for a progress bar: steps, last n, last norm, tunables."""
        return {
            "steps": self._counts["steps"],
            "draws": self.last_num_draws,
            "norm": self.last_grad_norm,
            **{name: self.tunable(name) for name in self.strictest},
        }

    def _open(self) -> None:
        """Begin a window, and watch its parameters where somebody else's changes would count."""
        params = self._params()
        kind = GradWindow if self.sums_in_grad else BufferWindow
        self._window: Window = kind(params)
        watch = vars(self).get("_watch")  # a copy has none yet
        if self._is_wrapped or not (self.sums_in_grad or self.needs_gradient):
            self._watch: GradientWatch | None = None
        elif watch is None or not watch.is_of(params):
            self._watch = GradientWatch(params)

    def __copy__(self) -> Any:
        if self.num_draws:
            raise RuntimeError(
                f"copy.copy of a {type(self).__name__} with {self.num_draws} pending draws, which "
                "two wrappers of the same parameters would step with: use copy.deepcopy"
            )
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer; it gets the tunables' initial values."""
        super().add_param_group(param_group)
        if self._watch is not None:
            self._watch.watch(self._params())

    @torch._disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget a gradient that is no draw yet; draws that wait for a step are kept.

        Raises: RuntimeError: with ``accumulate="grad"``, where it is in the sum of an open window.
        """
        if not self.holds_running_sum:
            self.optimizer.zero_grad(set_to_none=set_to_none or not self.sums_in_grad)
            if self._watch is not None and self._watch.is_of(params := self._params()):
                self._watch.forget()
            elif self._watch is not None:  # a group was added to the wrapped optimizer
                self._watch = GradientWatch(params)
        elif self._window.has_new():
            raise RuntimeError(CLEARED.format(self.num_draws))
        else:
            self._warn_once(
                f"zero_grad() was ignored: {self.num_draws} draws wait for a step, after which the "
                "wrapper clears gradients itself. Remove the call; discard() drops a window on "
                "purpose"
            )

    @torch._disable_dynamo
    def discard(self) -> None:
        """Throw the open window away, and a gradient that is no draw yet."""
        self._window.follow(self._params())
        self._window.clear()
        self._end_window(stepped=False)

    def on_close(self, stepped: bool) -> None:
        """After a window was closed and handed on, or thrown away."""

    def _run_pre_hooks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Those of this wrapper; what they make of a gradient is on purpose, unless it is a sum."""
        watch, params = self._watch, self._params()
        if watch is None or self.holds_running_sum or not watch.is_of(params):
            watch = None
        elif watch.was_changed([p.grad for p in params]):
            watch = None  # by somebody else
        for pre_hook in self._optimizer_step_pre_hooks.values():
            args, kwargs = pre_hook(self, args, kwargs) or (args, kwargs)
        if watch is not None:
            watch.note()
        return args, kwargs

    def _heed_changes(self) -> None:
        """Refuse, or with a buffer tell of, what somebody else did to the gradients of a draw."""
        watch, window = self._watch, self._window
        if watch is None:
            return
        has_others = window.num_draws == 0 and self.sums_in_grad and watch.has_others()
        if self.sums_in_grad and (window.was_changed or has_others):
            raise RuntimeError(CHANGED)
        if window.was_changed:
            self._warn_once(CHANGED_DRAW.format(type(self).__name__))
        has_arrived = watch.has_arrived
        if not watch.is_of(window.params):  # a group was added to the wrapped optimizer
            has_arrived |= watch.has_unseen(window.params)
            self._watch = watch = GradientWatch(window.params)
        if self.sums_in_grad and not has_arrived:
            raise RuntimeError(NO_BACKWARD)
        watch.forget()
        if isinstance(window, GradWindow):
            window.versions = watch.versions

    def _is_sharded(self) -> bool:
        return any(shard(param) is not param for param in self._window.params)

    def _defer(self, share: float, unit: float) -> None:
        """Count a draw whose gradient FSDP2 keeps until it is told to reduce."""
        window = self._window
        if window.num_draws and unit != window.unit:
            raise ValueError(
                "unequal weights of mean losses in draws that FSDP2 has not reduced: their sum "
                'cannot be weighed. Pass loss="sum" and sum the losses of tokens'
            )
        window.count(share, unit, share != self.default_weight)
        window.num_deferred, window.is_reduced = window.num_deferred + 1, False
        self._counts["batches"] += 1

    def _end_window(self, *, stepped: bool) -> None:
        self._open()
        self._forget_norms()
        self.on_close(stepped)

    def _forget_norms(self) -> None:
        self.grad_norm = self.draw_norm = None
        self.tensor_norms = []

    def _own_state(self) -> dict[str, Any]:
        self._window.check_reduced()
        if self.holds_running_sum:
            self._window.check()
        last = self.last_window
        return {
            **super()._own_state(),
            **self._window.state(),
            "last_window": None
            if last is None
            else {**vars(last), "draw_norms": [*last.draw_norms]},
            "counts": dict(self._counts),
            "grad_norm": self.grad_norm,
            "draw_norm": self.draw_norm,
            "tensor_norms": list(self.tensor_norms),
        }

    def _check_own(self, own: dict[str, Any]) -> None:
        check_shapes(self._params(), own["pending"])

    def _restore(self, own: dict[str, Any]) -> None:
        if "_window" in vars(self) and self.num_draws:  # a copy has none yet
            self._window.clear()
        self._open()
        self._window.load_state(own, self.default_weight)
        self.last_window = _closed(own, self.default_weight)
        self._counts.update(own["counts"])
        self.grad_norm, self.draw_norm = own.get("grad_norm"), own.get("draw_norm")
        self.tensor_norms = list(own.get("tensor_norms", []))
        super()._restore(own)


def _closed(own: dict[str, Any], default_weight: float) -> ClosedWindow | None:
    """The last closed window of a file; format 1 had two numbers of it."""
    if "last_window" not in own:
        n, norm = own["last_num_draws"], own["last_grad_norm"]
        return None if n is None else ClosedWindow(n, n * default_weight, norm)
    last = own["last_window"]
    return (
        None if last is None else ClosedWindow(**{**last, "draw_norms": tuple(last["draw_norms"])})
    )
