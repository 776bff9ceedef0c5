"""What a wrapper keeps: the open window, the ranks that share it, counters, the last window.

When a window closes is :mod:`gqc.wrappers.base`, where its sum lies :mod:`gqc.wrappers.window`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.checks import check_count, untraced
from gqc.gradients import count_nonfinite, is_sharded
from gqc.ranks import LOOKS, Ranks, are_parts, is_on, ranks_of
from gqc.wrappers import options, report, saved
from gqc.wrappers.delegate import DelegatingOptimizer
from gqc.wrappers.grad_window import GradWindow
from gqc.wrappers.watch import CLEARED
from gqc.wrappers.window import Window


class WindowedOptimizer(DelegatingOptimizer):
    """Draws that wait for a step: counted, reported, saved in mid-window."""

    #: does the decision need the gradient (reduced over all ranks)?
    needs_gradient: ClassVar[bool] = True
    #: the least ``min_draws`` with which the decision makes sense
    fewest_draws: int = 1
    #: does the decision read the norm of each draw alone?
    needs_draw_norm: ClassVar[bool] = False
    #: is the default weight of a draw its number of examples?
    counts_examples: ClassVar[bool] = False
    #: weight of a draw that is given none
    default_weight: float = 1.0
    sums_in_grad: bool  #: is it ``accumulate="grad"``?
    process_group: Any = None  # as hooks, none of these three is copied
    on_step: Callable[[dict[str, float]], object] | None = None
    loaded_at: int | None = None  #: of its `batches`, the last time that a state was loaded
    _ranks: Ranks | None = None
    _is_wrapped = False  # by an outer wrapper
    _is_skipping = False  # does GradScaler call the wrapped step, which skips an overflow itself?

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
        fewest = self.fewest_draws
        least = check_count("min_draws", fewest if min_draws is None else min_draws, fewest)
        if max_draws is not None:
            max_draws = check_count("max_draws", max_draws, least, ", min_draws, or None")
        self.min_draws, self.max_draws = least, max_draws
        self.decide_every = check_count("decide_every", decide_every, 1)
        self.clip_norm, self.on_step, self.process_group = clip_norm, on_step, process_group
        self.grad_scaler = grad_scaler if grad_scaler and grad_scaler.is_enabled() else None
        options.check_ways(self, accumulate, clip_norm)
        if isinstance(optimizer, WindowedOptimizer):
            optimizer._check_free()
        super().__init__(optimizer, tunables or {})
        if isinstance(optimizer, WindowedOptimizer):
            optimizer._is_wrapped, optimizer.sums_in_grad = True, False  # .grad is the outer's
            optimizer._make_window()
        self.last_window: report.ClosedWindow | None = None
        self._counts = dict.fromkeys(report.COUNTERS, 0)
        self._looks = LOOKS
        self._has_first_state = False  # made to be loaded into, and never stepped with
        self.sums_in_grad = accumulate == "grad"
        self.forget_norms()
        self._make_window()
        self._window.clear()  # of what a loop without wrapper has left in .grad

    @property
    def num_draws(self) -> int:
        """n, draws in the open window."""
        return self._window.num_draws

    @property
    def batches(self) -> int:
        """Microbatches so far, in all windows; ``statistics()`` counts the coming one too."""
        return self._counts["batches"]

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
    def weight(self) -> float:
        """W, weights of the draws in the open window; n where they are given none."""
        return self._window.weight

    @property
    def ranks(self) -> Ranks:
        """The ranks that train these parameters; found at the first draw.

        Raises: RuntimeError: they do so in a way that makes decisions or sums wrong.
        """
        if self._ranks is None:
            self._ranks = ranks = ranks_of(self)
            self._looks = 0 if are_parts(ranks.modules, ranks.groups) else self._looks
        return self._ranks

    statistics = report.statistics
    numbers = report.numbers

    def vital_statistics(self) -> dict[str, Any]:
        """The short set for a progress bar: steps, last n, last norm, tunables."""
        return {
            "steps": self._counts["steps"],
            "draws": self.last_num_draws,
            "norm": self.last_grad_norm,
            **{name: self.tunable(name) for name in self.strictest},
        }

    def reduce_pending(self) -> None:
        """Average the pending draws over the ranks, so that one rank's checkpoint fits them all.

        For ``reduce_at_step=True`` and draws that ``closes_next()`` left local; to be called on
        every rank.  The window stays open, and its mean the same up to rounding.
        """
        if self._is_local():
            self._window.reduce(self.ranks, is_mean=self.loss == "mean")

    @untraced
    def discard(self) -> None:
        """Throw the open window away, and a gradient that is no draw yet."""
        self._window.clear()
        self._window.follow(self._params())
        self._window.clear()  # of what parameters that are new have
        self._end_window(stepped=False)

    @untraced
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget a gradient that is no draw yet; draws that wait for a step are kept.

        Raises: RuntimeError: with ``accumulate="grad"``, where it is in the sum of an open window.
        """
        if not self.holds_running_sum:
            self.optimizer.zero_grad(set_to_none=set_to_none or not self.sums_in_grad)
            if (watch := self._window.watch) is not None:
                watch.follow([*self._params()])
                watch.forget()
        elif self._window.has_new():
            raise RuntimeError(CLEARED.format(self.num_draws))
        else:
            self._warn_once(
                f"zero_grad() was ignored: {self.num_draws} draws wait for a step, after which the "
                "wrapper clears gradients itself. Remove the call; discard() drops the window"
            )

    def accept_gradients(self) -> None:
        """Take this draw's gradients as they are: what changed them since ``backward`` was meant.

        For trainers: some measure norms by clipping to infinity.
        """
        if self._window.watch is not None and not self.holds_running_sum:
            self._window.watch.note()

    def on_close(self, stepped: bool) -> None:
        """After a window was closed and handed on, or thrown away."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with the tunables as they are now; gradients that it has are no draw."""
        for name in self.strictest if isinstance(param_group, dict) else ():
            param_group.setdefault(name, self.tunable(name))
        self.optimizer.add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            param.grad = None  # nobody has cleared it in a loop without zero_grad()
        if self._window.watch is not None:
            self._window.watch.follow([*self._params()])

    def __copy__(self) -> Any:
        if self.num_draws:
            raise RuntimeError(
                f"copy.copy of a {type(self).__name__} with {self.num_draws} pending draws, which "
                "two wrappers of the same parameters would step with: use copy.deepcopy"
            )
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin

    def _check_free(self) -> None:
        """Raises: RuntimeError, ValueError: it cannot be wrapped now."""
        if self.num_draws:
            raise RuntimeError(
                f"{type(self).__name__} has {self.num_draws} pending draws: flush() or discard()"
            )
        if self.loss != "mean":
            raise ValueError(
                f"loss={self.loss!r} of a wrapper inside another, which hands on means: give "
                'loss="sum" to the outer one alone'
            )

    def _note_load_of_wrapped(self) -> None:
        """Where no wrapper has done it, what was drawn before the checkpoint is no draw."""
        each: Any = self
        while isinstance(each, WindowedOptimizer):
            if each._is_loading:
                return
            each = each.optimizer
        self.discard()

    def _note_step_of_wrapped(self) -> None:
        if not self.num_draws:  # somebody else's, whose gradient is still in .grad
            self._window.leave()

    def _refuse_to_step_wrapped(self) -> None:
        """Raises: RuntimeError: somebody else steps the wrapped optimizer while draws wait."""
        if self.num_draws and self._window._sums and not self._is_skipping:
            raise RuntimeError(
                f"{type(self.optimizer).__name__}.step() by itself, while {self.num_draws} draws "
                f"of {type(self).__name__} wait for a step: call that of the wrapper alone; "
                "flush() or discard() its window before the optimizer is used without it"
            )

    def _make_window(self) -> None:
        """Watch the parameters, unless an outer wrapper does."""
        kind = GradWindow if self.sums_in_grad else Window
        self._window: Any = kind(self._params(), not self._is_wrapped, self.grad_scaler)

    def _is_local(self) -> bool:
        """Are there pending draws that are this rank's alone?"""
        is_pending = (self.reduce_at_step or self._window.is_local) and self.num_draws > 0
        return is_pending and not self._window.is_shared and self.ranks.size > 1

    def _end_window(self, *, stepped: bool) -> None:
        self.forget_norms()
        self.on_close(stepped)

    def forget_norms(self) -> None:
        """Before a draw, and after a window."""
        self.grad_norm: float | None = None  #: norm of G_n, if this draw read it
        self.draw_norm: float | None = None  #: norm of g_n, if this draw read it
        self.tensor_norms: list[float] = []  #: norm of each tensor of G_n, if this draw read them

    def _read(self, norms: dict[str, Tensor]) -> bool:
        """The draw's one host sync: all the ``norms`` that it needs in one transfer, unscaled.

        Returns: are all of them finite?
        """
        self.forget_norms()
        if not norms:
            return True
        first, *more = norms.values()
        values = torch.hstack([first, *(t.to(first.device) for t in more)]) if more else first
        if (scaler := self.grad_scaler) is not None:
            values = values / scaler.scale(values.new_ones(values.shape))
        found = values.tolist() if values.dim() else [values.item()]
        is_finite, window = math.isfinite(sum(found)), self._window
        if "draw_norm" in norms:
            self.draw_norm = found.pop(0) * window.unit / window.last_weight
        if "grad_norm" in norms:
            self.grad_norm, *self.tensor_norms = [norm / window.divisor for norm in found]
        return is_finite

    def _is_checked(self) -> bool:
        """Are gradients looked at for NaN and inf?"""
        return self.nonfinite != "ignore" or self.grad_scaler is not None

    def _must_check(self) -> bool:
        """Is a step the first look at its gradient, for NaN or by the ranks at each other's?"""
        is_new = self.grad_norm is None
        if (self.reduce_at_step or (is_new and self._window.is_in_grad)) and self._is_checked():
            return True
        is_apart = not (self.reduce_at_step or self._is_wrapped)
        return is_apart and is_new and self._looks > 0 and self.ranks.size > 1

    def _is_finite(self) -> bool:
        """With a norm that is not: is each element finite (and the sum of squares too large)?"""
        return not self._is_checked() or not count_nonfinite(self._window.totals())

    def _prepare_to_save(self) -> bool:
        if not is_on() or self._is_wrapped:
            return False
        if self._is_local():
            self._warn_once(saved.SAVED_ALONE.format(self.num_draws))
        inner = self.innermost
        if not inner.state and self._counts["steps"] == 0 and is_sharded(self._params()):
            saved.make_state(inner)
            self._has_first_state = True
        return True

    def _own_state(self) -> dict[str, Any]:
        self._window.check() if self.holds_running_sum else self._window.check_reduced()
        own = {
            **super()._own_state(),
            **self._window.state(),
            "last_window": self.last_window and dict(vars(self.last_window)),
            "counts": dict(self._counts),
            "grad_norm": self.grad_norm,
            "draw_norm": self.draw_norm,
            "tensor_norms": list(self.tensor_norms),
            "has_first_state": self._has_first_state,
        }
        return {**own, "rank": self._rank()} if self._is_local() else own

    def _rank(self) -> list[int]:
        return [torch.distributed.get_rank() if is_on() else 0, self.ranks.size]

    def _check_own(self, own: dict[str, Any]) -> None:
        super()._check_own(own)
        if own.get("rank", here := self._rank()) != here:
            raise ValueError(saved.ONE_RANKS_DRAWS.format(own["rank"][0], *here))
        if own["num_draws"] and not own["pending"]:  # as files of 0.1.0 may
            raise ValueError("the state holds draws without a gradient: it was saved within a step")
        saved.check_shapes(self._params(), own["pending"])

    def _restore(self, own: dict[str, Any]) -> None:
        if "_window" in vars(self):  # no copy
            self.loaded_at = own["counts"]["batches"]
            if self.num_draws or not self._is_wrapped:  # then .grad is the outer one's
                self._window.clear()
        self._make_window()
        self._window.load_state(own, self.default_weight)
        self.last_window = report.closed(own, self.default_weight)
        self._counts.update(own["counts"])
        self.grad_norm, self.draw_norm = own.get("grad_norm"), own.get("draw_norm")
        self.tensor_norms = list(own.get("tensor_norms", []))
        self._has_first_state = own.get("has_first_state", False)
        super()._restore(own)
