"""Schedules as objects that write a param group's entry at every step."""

import bisect
import math
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

THRESHOLD = "gradient_norm_threshold"


class ParamGroupSchedule(LRScheduler):
    """Set ``group[key] = fn(step)`` in every param group, at once and after each :meth:`step`.

    Not at once where the wrapper was just loaded: load the schedule too.  A tensor is filled in
    place.  It is an ``LRScheduler`` so that trainers accept it, step it and save it: pass it to
    ``accelerator.prepare`` or return it from Lightning's ``configure_optimizers`` with
    ``"interval": "step"``; or leave both to the wrapper with :func:`gqc.integrations.attach`.

    Args:
        optimizer: an optimizer or a wrapper; the groups are looked up at each step, so that a
            loaded ``state_dict`` and an added group are followed.
        key: the entry to write, a number in every group.
        fn: step [microbatches, from 0] -> value, finite.  To be pickled with the schedule, it has
            to be a function of a module, or a ``functools.partial`` of one.
    Raises:
        TypeError: ``optimizer`` is not an ``Optimizer``, or ``fn`` no function.
        KeyError: a group has no number ``key``.
        ValueError: ``fn`` returned NaN, infinity, or no number; the groups keep their values.
    Warns: a norm threshold that starts at 0 makes every early window run to ``max_draws``; groups
        that have different values get one; a schedule that is stepped once in several draws falls
        behind.
    """

    is_attached = False  #: does the wrapper step it, or another schedule?
    _is_late = False  # was that said?

    def __init__(self, optimizer: Optimizer, key: str, fn: Callable[[int], float]) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}: expected an Optimizer")
        if not callable(fn):
            raise TypeError(f"fn={fn!r}: expected a function of the step")
        for index, group in enumerate(optimizer.param_groups):
            known = [k for k, v in group.items() if type(v) in (int, float) or hasattr(v, "ndim")]
            if key not in known:
                raise KeyError(f"param group {index} has no {key!r}: expected one of {known}")
        self.optimizer, self.key, self.fn = optimizer, key, fn
        self.last_step = 0
        self._step_count = 1  # as Accelerate reads and writes it
        self._last_batch: int | None = None  # of the wrapper, at the last step
        now, at = getattr(optimizer, "batches", 0), getattr(optimizer, "loaded_at", None)
        self._optimizer_was_loaded = bool(at) and now == at
        self._batch: int | None = 0 if self._optimizer_was_loaded else now  # that `last_step` is of
        if key == THRESHOLD and self.value_at(0) == 0:
            warnings.warn(
                "the norm threshold starts at 0, so every early window runs to max_draws: a "
                "threshold is warmed up from above, as "
                "get_norm_threshold_cosine_annealing_with_warmup does",
                stacklevel=3,
            )
        if len({*(present := self.get_last_value())}) > 1:
            warnings.warn(
                f"the param groups have {key} {present}, and a schedule writes one value to all: "
                "give them one first if that is meant; torch's LambdaLR keeps the ratios of lr",
                stacklevel=3,
            )
        # LRScheduler.__init__ would set the lr and replace optimizer.step.
        if not self._optimizer_was_loaded:
            self._write(0)
        self._watch_loads()

    def _watch_loads(self) -> None:
        loaded: Any = getattr(self.optimizer, "innermost", self.optimizer)  # or by its wrapper
        if hasattr(loaded, "_optimizer_load_state_dict_post_hooks"):
            weak = weakref.ref(self)

            def note(_: Optimizer) -> None:
                if (schedule := weak()) is not None:
                    schedule._optimizer_was_loaded, schedule._last_batch = True, None

            loaded.register_load_state_dict_post_hook(note)

    @property
    def last_epoch(self) -> int:
        """The name that torch's schedulers have for ``last_step``."""
        return self.last_step

    @last_epoch.setter
    def last_epoch(self, step: int) -> None:
        raise TypeError(
            f"last_epoch={step} of a schedule of {self.key!r}: torch's SequentialLR can't hold it. "
            "Make one ParamGroupSchedule, whose function of the step may ask others for value_at, "
            "or give PiecewiseSchedule all points; go_to(step) moves a schedule"
        )

    @property
    def base_lrs(self) -> list[float]:  # type: ignore[override]
        return [float(g.get("initial_lr", g.get("lr", 0))) for g in self.optimizer.param_groups]

    def value_at(self, step: int) -> float:
        """Return the value at any step, without changing the schedule or the optimizer.

        Raises: ValueError: it is NaN or infinite.
        """
        found = self.fn(step)
        value = float(found) if hasattr(found, "__float__") else math.nan
        if not math.isfinite(value):
            raise ValueError(f"schedule of {self.key!r} is {found} at step {step}: expected finite")
        return value

    def step(self) -> None:  # type: ignore[override]
        """Advance by one microbatch, also where Accelerate calls this once per process.

        Raises: RuntimeError: the wrapper steps it, or a checkpoint of the optimizer was loaded and
            none of this schedule.
        """
        if self.is_attached:
            raise RuntimeError(
                f"step() of a schedule of {self.key!r} that is attached: its wrapper steps it "
                "after each draw, or the NormWarmupScheduler around it. Remove the call, and do "
                "not hand the schedule to a trainer"
            )
        if not self._is_repeated(sys._getframe(1).f_globals.get("__name__")):
            self._check_loaded()
            self.go_to(self.last_step + 1)
            self._batch = self._last_batch

    def go_to(self, step: int) -> None:
        """Write the value of a step, from which :meth:`step` continues."""
        self._write(step)
        self.last_step = step
        self._optimizer_was_loaded = False

    def get_last_value(self) -> list[float]:
        """Return the present value in each param group."""
        return [float(group[self.key]) for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """Return the learning rate in each param group, whatever ``key`` is, as trainers log it."""
        return [float(g["lr"]) for g in self.optimizer.param_groups if g.get("lr") is not None]

    get_lr = get_last_lr  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"key", "last_step"}``; the function is the constructor's."""
        return {"key": self.key, "last_step": self.last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, and write the value of that step.

        Raises: ValueError: the state of a schedule of another key; nothing is changed.
        """
        before = self.state_dict()
        try:
            self._restore(state_dict)
            self.go_to(self.last_step)
            self._batch = None  # the file fits, in whatever order the two are loaded
        except ValueError:
            self._restore(before)
            raise

    def _restore(self, state: dict[str, Any]) -> None:
        if (key := state.get("key")) != self.key:
            raise ValueError(f"state of a schedule of {key!r} given to one of {self.key!r}")
        self.last_step = state["last_step"]

    def __getstate__(self) -> dict[str, Any]:
        """Without ``is_attached``: the wrapper's hooks, which would step a copy, are not copied."""
        return {key: value for key, value in vars(self).items() if key != "is_attached"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._watch_loads()

    def _is_repeated(self, caller: str | None) -> bool:
        """Does Accelerate step once more for another process, with no draw since the last call?"""
        now = getattr(self.optimizer, "batches", None)
        last, self._last_batch = self._last_batch, now
        if last is None or now is None:
            return False
        if now - last > 1 and not self._is_late:
            self._is_late = True
            warnings.warn(
                f"a schedule of {self.key!r} was stepped once in {now - last} microbatches, which "
                "it counts: step() it after each optimizer.step(), whether that stepped or not (in "
                'Lightning with "interval": "step"), or gqc.integrations.attach(schedule)',
                stacklevel=3,
            )
        return now == last and caller == "accelerate.scheduler"

    def _check_loaded(self) -> None:
        """Refuse to go on from step 0 where only the optimizer was resumed."""
        if not self._optimizer_was_loaded:
            return
        present = self.get_last_value()
        here = self.value_at(self.last_step)
        later = " and goes another way" if self._parts_later() else ""
        if later or not all(math.isclose(value, here, rel_tol=1e-6) for value in present):
            raise RuntimeError(
                f"the optimizer was loaded with {self.key}={present[0]:g}, but not its "
                f"schedule, which is at step {self.last_step} with {here:g}{later}: load both "
                "(schedule.load_state_dict(), or prepare it with Accelerate), attach() it before, "
                "or call go_to(0) to start it again on purpose"
            )

    def _parts_later(self) -> bool:
        """Will values differ from those of the wrapper's microbatches, as after a plateau?"""
        now, at = getattr(self.optimizer, "batches", 0), getattr(self.optimizer, "loaded_at", None)
        if self._batch is None or at is None or at <= self._batch <= now:
            return False  # the optimizer inside was loaded alone
        by, steps = at - self._batch, [self.last_step + 2**power for power in range(24)]
        try:
            pairs = ((self.value_at(step), self.value_at(max(0, step + by))) for step in steps)
            return not all(math.isclose(*pair) for pair in pairs)
        except (ArithmeticError, LookupError, ValueError):  # it is not defined so far out
            return False

    def _write(self, step: int) -> None:
        value = self.value_at(step)
        for group in self.optimizer.param_groups:
            write(group, self.key, value)


def interpolate(points: Sequence[tuple[float, float]], step: float) -> float:
    """Return the value at ``step`` of the line through ``points``, level beyond its ends."""
    right = bisect.bisect_right(points, step, key=lambda point: point[0])
    if right == 0:
        return points[0][1]
    if right == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (step - x0) / (x1 - x0)


def write(group: dict[str, Any], key: str, value: float) -> None:
    """Set an entry of a param group."""
    present = group.get(key)
    if isinstance(present, Tensor):  # as capturable and compiled optimizers hold an lr
        present.fill_(value)
    else:
        group[key] = value


class PiecewiseSchedule(ParamGroupSchedule):
    """Straight lines between points, level before the first and after the last.

    Args:
        optimizer, key: see :class:`ParamGroupSchedule`.
        points: ``(step, value)`` pairs, steps strictly increasing, all numbers finite.
    Attributes:
        points: may be assigned while training; the new line counts from the next :meth:`step`, and
            is saved.  A state without such an edit leaves the constructor's points.
    Raises: ValueError: no points, steps that do not increase, or a number that is not finite; the
        points stay as they were.
    """

    def __init__(
        self, optimizer: Optimizer, points: Iterable[Sequence[float]], *, key: str = THRESHOLD
    ) -> None:
        self.points = points
        self._first_points = [*self.points]
        super().__init__(optimizer, key, self._line)

    @property
    def points(self) -> list[tuple[float, float]]:
        return self._points

    @points.setter
    def points(self, points: Iterable[Sequence[float]]) -> None:
        try:
            checked = [(float(step), float(value)) for step, value in points]
        except (TypeError, ValueError):
            raise ValueError(f"points={points!r}: expected (step, value) pairs") from None
        if not checked:
            raise ValueError("points=[]: expected at least one (step, value)")
        for number in (x for point in checked for x in point):
            if not math.isfinite(number):
                raise ValueError(f"points hold {number}: expected finite numbers")
        for (before, _), (after, _) in pairwise(checked):
            if not after > before:
                raise ValueError(f"steps {before:g}, {after:g}: expected strictly increasing steps")
        self._points, self._checked = checked, tuple(checked)

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"key", "last_step", "points", "first_points"}``."""
        both = {"points": self.points, "first_points": self._first_points}
        return {**super().state_dict(), **{k: [*map(list, v)] for k, v in both.items()}}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        points, own = state.get("points", self.points), [*map(list, self._first_points)]
        first = state.get("first_points", own)  # version 0.1.0 did not save them
        if first == own:
            self.points = points
        elif points == first:  # a resume at another length, say
            self.points = own
        else:
            raise ValueError(
                f"state of a schedule of {self.key!r} made with {first} and then edited, given to "
                f"one made with {own}: make it with those of the file, load, then assign .points"
            )

    def _line(self, step: int) -> float:
        if tuple(self._points) != self._checked:  # edited in place
            self.points = self._points
        return interpolate(self._points, step)
