r"""Schedules for any number in a param group: a norm threshold, a logical batch size, an lr.

A schedule is stepped once per **microbatch**, so its step counts count microbatches, not optimizer
steps.  It writes the value itself (not a factor of the initial one), may stand beside torch's own
lr schedulers, and holds its last value past its end.

A norm threshold is warmed up the other way round than an lr: it starts *high*, so that the first
windows are short, and comes down.

Source of the shapes: torch-gqc and its README; there they extrapolate past their end.
"""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

THRESHOLD = "gradient_norm_threshold"


class ParamGroupSchedule:
    """Set ``group[key] = fn(step)`` in every param group, at once and after each :meth:`step`.

    A tensor is filled in place, as torch's own schedulers do.

    Args:
        optimizer: an optimizer or a wrapper; the groups are looked up at each step, so that a
            loaded ``state_dict`` and an added group are followed.
        key: the entry to write; it must exist in every group.
        fn: step [microbatches, from 0] -> value, finite.
    Raises:
        TypeError: ``optimizer`` is not an ``Optimizer``.
        KeyError: a group has no ``key``.
        ValueError: ``fn`` returned NaN or infinity; the groups keep their values.
    Warns: a norm threshold that starts at 0 makes every early window run to ``max_draws``.
    """

    def __init__(self, optimizer: Optimizer, key: str, fn: Callable[[int], float]) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}: expected an Optimizer")
        for index, group in enumerate(optimizer.param_groups):
            if key not in group:
                known = sorted(set(group) - {"params"})
                raise KeyError(f"param group {index} has no {key!r}: expected one of {known}")
        self.optimizer, self.key, self.fn = optimizer, key, fn
        self.last_step = 0
        if key == THRESHOLD and fn(0) == 0:
            warnings.warn(
                "the norm threshold starts at 0, so every early window runs to max_draws: a "
                "threshold is warmed up from above, as "
                "get_norm_threshold_cosine_annealing_with_warmup does",
                stacklevel=3,
            )
        self._write(0)

    def step(self) -> None:
        """Go on by one microbatch."""
        self._write(self.last_step + 1)
        self.last_step += 1

    def get_last_value(self) -> list[float]:
        """The value now in each param group."""
        return [float(group[self.key]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """``{"key", "last_step"}``; the function is the constructor's."""
        return {"key": self.key, "last_step": self.last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises: ValueError: the state of a schedule of another key; nothing is changed.
        """
        if state_dict["key"] != self.key:
            raise ValueError(
                f"state of a schedule of {state_dict['key']!r} given to one of {self.key!r}"
            )
        self._write(state_dict["last_step"])
        self.last_step = state_dict["last_step"]

    def _write(self, step: int) -> None:
        value = float(self.fn(step))
        if not math.isfinite(value):
            raise ValueError(f"schedule of {self.key!r} is {value} at step {step}: expected finite")
        for group in self.optimizer.param_groups:
            present = group.get(self.key)
            if isinstance(present, Tensor):  # as capturable and compiled optimizers hold an lr
                present.fill_(value)
            else:
                group[self.key] = value


class PiecewiseSchedule(ParamGroupSchedule):
    """Straight lines between points, level before the first and after the last.

    Args:
        optimizer, key: see :class:`ParamGroupSchedule`.
        points: ``(step, value)`` pairs, steps strictly increasing, all numbers finite.
    Attributes:
        points: may be assigned while training; the new line counts from the next :meth:`step`.
    Raises: ValueError: no points, steps that do not increase, or a number that is not finite; the
        points stay as they were.
    """

    def __init__(
        self, optimizer: Optimizer, points: Iterable[Sequence[float]], *, key: str = THRESHOLD
    ) -> None:
        self.points = points
        super().__init__(optimizer, key, lambda step: interpolate(self.points, step))

    @property
    def points(self) -> list[tuple[float, float]]:
        return self._points

    @points.setter
    def points(self, points: Iterable[Sequence[float]]) -> None:
        checked = [(float(step), float(value)) for step, value in points]
        if not checked:
            raise ValueError("points=[]: expected at least one (step, value)")
        for number in (x for point in checked for x in point):
            if not math.isfinite(number):
                raise ValueError(f"points hold {number}: expected finite numbers")
        for (before, _), (after, _) in pairwise(checked):
            if not after > before:
                raise ValueError(f"steps {before:g}, {after:g}: expected strictly increasing steps")
        self._points = checked

    def state_dict(self) -> dict[str, Any]:
        """``{"key", "last_step", "points"}``."""
        return {**super().state_dict(), "points": [list(point) for point in self.points]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before = self.points
        self.points = state_dict.get("points", before)
        try:
            super().load_state_dict(state_dict)
        except ValueError:
            self.points = before
            raise


class NormWarmupScheduler(ParamGroupSchedule):
    r"""Inverted warmup in front of another schedule.

    For the first W steps the value is that of ``scheduler`` at its start times a factor that falls
    linearly from ``warmup_start`` to ``warmup_end``; after them ``scheduler`` runs from its start,
    times ``warmup_end``.

    Args:
        scheduler: a :class:`ParamGroupSchedule` that was not stepped yet; this one takes its place.
        num_warmup_steps: W [microbatches], >= 0.
        warmup_start, warmup_end: factors, >= 0.
    Raises: ValueError: an argument out of its range, or a schedule that was stepped already.
    """

    def __init__(
        self,
        scheduler: ParamGroupSchedule,
        num_warmup_steps: int,
        warmup_start: float = 10.0,
        warmup_end: float = 1.0,
    ) -> None:
        _check_count("num_warmup_steps", num_warmup_steps, 0)
        _check_value("warmup_start", warmup_start)
        _check_value("warmup_end", warmup_end)
        if scheduler.last_step != 0:
            raise ValueError(f"scheduler stepped {scheduler.last_step} times: expected a new one")
        after = scheduler.fn

        def fn(step: int) -> float:
            ramp = min(step / num_warmup_steps, 1.0) if num_warmup_steps else 1.0
            factor = warmup_start + (warmup_end - warmup_start) * ramp
            return factor * after(max(step - num_warmup_steps, 0))

        super().__init__(scheduler.optimizer, scheduler.key, fn)


def interpolate(points: Sequence[tuple[float, float]], step: float) -> float:
    """The value at ``step`` of the line through ``points``, level beyond its ends."""
    right = bisect.bisect_right(points, step, key=lambda point: point[0])
    if right == 0:
        return points[0][1]
    if right == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (step - x0) / (x1 - x0)


def get_norm_threshold_cosine_annealing_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    start_norm: float = 1.0,
    end_norm: float = 0.0,
    warmup_multiplier: float = 10.0,
    *,
    key: str = THRESHOLD,
) -> ParamGroupSchedule:
    r"""Inverted warmup, then cosine: the schedule for :class:`~gqc.OptimizerWrapperGNTS`.

    With W warmup and T training steps, start a, end b, multiplier m and
    :math:`x=(t-W)/(T-W)`:  :math:`am + (a-am)\,t/W` for :math:`t<W`, then
    :math:`b + (a-b)(1+\cos\pi x)/2`, then b.

    Args:
        num_warmup_steps, num_training_steps: W and T [microbatches], 0 <= W <= T, T >= 1.
        start_norm, end_norm, warmup_multiplier: a, b, m, >= 0.
    Raises: ValueError: an argument out of its range.
    """
    _check_value("start_norm", start_norm)
    _check_value("end_norm", end_norm)
    _check_value("warmup_multiplier", warmup_multiplier)
    fn = _cosine(start_norm * warmup_multiplier, start_norm, end_norm)
    return _with_warmup(optimizer, key, fn, num_warmup_steps, num_training_steps)


def get_direct_cosine_annealing_with_warmup(
    optimizer: Optimizer,
    peak_value: float,
    num_warmup_steps: int,
    num_training_steps: int,
    min_value: float = 0.0,
    *,
    key: str = "lr",
) -> ParamGroupSchedule:
    r"""Warmup from 0 to a peak, then cosine to a minimum; values, not factors.

    :math:`p\,t/W` for :math:`t<W`, then :math:`b+(p-b)(1+\cos\pi x)/2`, then b.

    Args:
        peak_value, min_value: p and b, >= 0.
        num_warmup_steps, num_training_steps: W and T [microbatches], 0 <= W <= T, T >= 1.
        key: any param-group key; not a norm threshold, which is warmed up from above.
    Raises: ValueError: an argument out of its range.
    """
    _check_value("peak_value", peak_value)
    _check_value("min_value", min_value)
    fn = _cosine(0.0, peak_value, min_value)
    return _with_warmup(optimizer, key, fn, num_warmup_steps, num_training_steps)


def get_curved_batch_schedule(
    optimizer: Optimizer,
    initial_batch_size: float,
    final_batch_size: float,
    num_training_steps: int,
    polynomial_exponent: float = 2.0,
    *,
    key: str = "logical_batch_size",
) -> ParamGroupSchedule:
    r"""Polynomial growth :math:`a + (b-a)\,(t/T)^p`, then b.

    Args:
        initial_batch_size, final_batch_size: a and b [examples], > 0.
        num_training_steps: T [microbatches], >= 1.
        polynomial_exponent: p > 0; above 1 it grows slowly first.
    Raises: ValueError: an argument out of its range.
    """
    for name, size in (
        ("initial_batch_size", initial_batch_size),
        ("final_batch_size", final_batch_size),
        ("polynomial_exponent", polynomial_exponent),
    ):
        if not 0 < size < math.inf:
            raise ValueError(f"{name}={size!r}: expected a finite number > 0")
    _check_count("num_training_steps", num_training_steps, 1)

    def fn(step: int) -> float:
        progress = min(step / num_training_steps, 1.0)
        return initial_batch_size + (final_batch_size - initial_batch_size) * (
            progress**polynomial_exponent
        )

    return ParamGroupSchedule(optimizer, key, fn)


def get_quadratic_batch_schedule(
    optimizer: Optimizer,
    initial_batch_size: float,
    final_batch_size: float,
    num_training_steps: int,
    *,
    key: str = "logical_batch_size",
) -> ParamGroupSchedule:
    """:func:`get_curved_batch_schedule` with exponent 2."""
    return get_curved_batch_schedule(
        optimizer, initial_batch_size, final_batch_size, num_training_steps, key=key
    )


def get_constant_schedule(optimizer: Optimizer, value: float, *, key: str) -> ParamGroupSchedule:
    """``value`` at every step (finite, >= 0)."""
    _check_value("value", value)
    return ParamGroupSchedule(optimizer, key, lambda step: value)


def get_linear_schedule(
    optimizer: Optimizer,
    start_value: float,
    end_value: float,
    num_training_steps: int,
    *,
    key: str,
) -> ParamGroupSchedule:
    """A straight line over ``num_training_steps`` microbatches, then level (values >= 0)."""
    _check_value("start_value", start_value)
    _check_value("end_value", end_value)
    _check_count("num_training_steps", num_training_steps, 1)
    points = [(0, start_value), (num_training_steps, end_value)]
    return PiecewiseSchedule(optimizer, points, key=key)


def _cosine(first: float, start: float, end: float) -> Callable[[int, int, int], float]:
    def value(step: int, warmup: int, total: int) -> float:
        if step < warmup:
            return first + (start - first) * step / warmup
        if step >= total:
            return end
        progress = (step - warmup) / (total - warmup)
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))

    return value


def _with_warmup(
    optimizer: Optimizer,
    key: str,
    value: Callable[[int, int, int], float],
    warmup: int,
    total: int,
) -> ParamGroupSchedule:
    _check_count("num_warmup_steps", warmup, 0)
    _check_count("num_training_steps", total, 1)
    if warmup > total:
        raise ValueError(
            f"num_warmup_steps={warmup}: expected at most num_training_steps={total}; both count "
            "microbatches"
        )
    return ParamGroupSchedule(optimizer, key, lambda step: value(step, warmup, total))


def _check_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or not value >= least:
        raise ValueError(f"{name}={value!r}: expected an integer >= {least}")


def _check_value(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value!r}: expected a finite number >= 0")
