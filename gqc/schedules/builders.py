"""Builders of the common schedules, their values as functions of the step, a warmup before any."""

import math
from functools import partial
from typing import Any

from torch.optim import Optimizer

from gqc.checks import check_count, check_finite, check_positive, expect
from gqc.schedules.writers import THRESHOLD, ParamGroupSchedule, PiecewiseSchedule, interpolate


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

    :func:`cosine_with_warmup` from ``start_norm * warmup_multiplier`` to ``start_norm`` and then to
    ``end_norm``.

    Args:
        num_warmup_steps, num_training_steps: W and T [microbatches], 0 <= W <= T, T >= 1.
        start_norm, end_norm, warmup_multiplier: >= 0.
    Raises: ValueError: an argument out of its range.
    """
    check_finite(start_norm=start_norm, end_norm=end_norm, warmup_multiplier=warmup_multiplier)
    first, lengths = start_norm * warmup_multiplier, (num_warmup_steps, num_training_steps)
    return _cosine(optimizer, key, *lengths, first, start_norm, end_norm)


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

    :func:`cosine_with_warmup` from 0 to ``peak_value`` and then to ``min_value``.

    Args:
        peak_value, min_value: >= 0.
        num_warmup_steps, num_training_steps: W and T [microbatches], 0 <= W <= T, T >= 1.
        key: any param-group key; not a norm threshold, which is warmed up from above.
    Raises: ValueError: an argument out of its range.
    """
    check_finite(peak_value=peak_value, min_value=min_value)
    return _cosine(optimizer, key, num_warmup_steps, num_training_steps, 0.0, peak_value, min_value)


def get_curved_batch_schedule(
    optimizer: Optimizer,
    initial_batch_size: float,
    final_batch_size: float,
    num_training_steps: int,
    polynomial_exponent: float = 2.0,
    *,
    key: str = "logical_batch_size",
) -> ParamGroupSchedule:
    r"""Polynomial growth, see :func:`power_growth`.

    Args:
        initial_batch_size, final_batch_size: a and b [examples], > 0.
        num_training_steps: T [microbatches], >= 1.
        polynomial_exponent: p > 0; above 1 it grows slowly first.
    Raises: ValueError: an argument out of its range.
    """
    check_positive("initial_batch_size", initial_batch_size)
    check_positive("final_batch_size", final_batch_size)
    check_positive("polynomial_exponent", polynomial_exponent)
    check_count("num_training_steps", num_training_steps, 1)
    shape = initial_batch_size, final_batch_size, polynomial_exponent
    return ParamGroupSchedule(optimizer, key, partial(power_growth, num_training_steps, *shape))


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
    check_finite(value=value)
    return ParamGroupSchedule(optimizer, key, partial(interpolate, [(0, value)]))


def get_linear_schedule(
    optimizer: Optimizer, start_value: float, end_value: float, num_training_steps: int, *, key: str
) -> ParamGroupSchedule:
    """A straight line over ``num_training_steps`` microbatches, then level (values >= 0)."""
    check_finite(start_value=start_value, end_value=end_value)
    check_count("num_training_steps", num_training_steps, 1)
    points = [(0, start_value), (num_training_steps, end_value)]
    return PiecewiseSchedule(optimizer, points, key=key)


class NormWarmupScheduler(ParamGroupSchedule):
    r"""Inverted warmup in front of another schedule.

    For the first W steps the value is that of ``scheduler`` at its start times a factor that falls
    linearly from ``warmup_start`` to ``warmup_end``; after them ``scheduler`` runs from its start,
    times ``warmup_end``.

    Args:
        scheduler: a :class:`ParamGroupSchedule` that was not stepped yet, whose value depends on
            the step alone; this one takes its place, and calling its ``step`` is an error (not of a
            copy of it alone).
        num_warmup_steps: W [microbatches], >= 0.
        warmup_start, warmup_end: factors, >= 0.
    Attributes:
        scheduler: the inner one; the points of a :class:`PiecewiseSchedule` may be assigned while
            training, and are saved with this one.
    Raises:
        ValueError: an argument out of its range, or a schedule that was stepped or attached.
        TypeError: one that reads or writes more at each step than ``key``, as `DrawsSchedule`.
    """

    def __init__(
        self,
        scheduler: ParamGroupSchedule,
        num_warmup_steps: int,
        warmup_start: float = 10.0,
        warmup_end: float = 1.0,
    ) -> None:
        check_count("num_warmup_steps", num_warmup_steps, 0)
        check_finite(warmup_start=warmup_start, warmup_end=warmup_end)
        kind, base = type(scheduler), ParamGroupSchedule
        if not isinstance(scheduler, base):
            raise TypeError(f"scheduler is a {kind.__name__}: expected a schedule of gqc to follow")
        if scheduler.last_step != 0 or scheduler.is_attached:
            done = f"attached, or stepped {scheduler.last_step} times"
            raise ValueError(f"scheduler is {done}: expected a new one")
        if (kind.go_to, kind._write) != (base.go_to, base._write):
            raise TypeError(f"{kind.__name__} does more at a step: give it a warmup of its own")
        self.scheduler, scheduler.is_attached = scheduler, True
        self._warmup = num_warmup_steps, warmup_start, warmup_end
        super().__init__(scheduler.optimizer, scheduler.key, self._warmed)

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"key", "last_step", "scheduler"}``, the last one the inner schedule's state."""
        return {**super().state_dict(), "scheduler": self.scheduler.state_dict()}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        if "scheduler" in state:  # version 0.1.0 did not save it
            self.scheduler._restore(state["scheduler"])

    def _warmed(self, step: int) -> float:
        length, start, end = self._warmup
        ramp = min(step / length, 1.0) if length else 1.0
        return (start + (end - start) * ramp) * self.scheduler.value_at(max(step - length, 0))


def _cosine(
    optimizer: Optimizer, key: str, warmup: int, total: int, first: float, peak: float, end: float
) -> ParamGroupSchedule:
    check_lengths(warmup, total)
    fn = partial(cosine_with_warmup, warmup, total, first, peak, end)
    return ParamGroupSchedule(optimizer, key, fn)


def check_lengths(warmup: int, total: int) -> None:
    """Raises: ValueError: a schedule cannot have these lengths [microbatches]."""
    check_count("num_warmup_steps", warmup, 0)
    check_count("num_training_steps", total, 1)
    most = f"at most num_training_steps={total}; both count microbatches"
    expect(warmup <= total, "num_warmup_steps", warmup, most)


def cosine_with_warmup(
    num_warmup_steps: int, num_training_steps: int, first: float, peak: float, end: float, step: int
) -> float:
    r"""Return the value at ``step`` of a straight line, a half cosine, and a level end.

    With W warmup and T training steps, :math:`x=(t-W)/(T-W)`, and the ``first`` value f, the
    ``peak`` p (below f in an inverted warmup) and the ``end`` b:
    :math:`f + (p-f)\,t/W` for :math:`t<W`, then :math:`b + (p-b)(1+\cos\pi x)/2`, then b.
    """
    if step < num_warmup_steps:
        return first + (peak - first) * step / num_warmup_steps
    if step >= num_training_steps:
        return end
    progress = (step - num_warmup_steps) / (num_training_steps - num_warmup_steps)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))


def power_growth(
    num_training_steps: int, start: float, end: float, exponent: float, step: int
) -> float:
    r"""Return :math:`a + (b-a)\,(t/T)^p` at step t, b after T: ``start``, ``end``, ``exponent``."""
    return start + (end - start) * min(step / num_training_steps, 1.0) ** exponent
