r"""Schedules for any number in a param group: a norm threshold, a logical batch size, an lr.

A schedule's value is a pure function of the step (:meth:`ParamGroupSchedule.value_at`); the classes
of :mod:`gqc.schedules.writers` write it into the param groups.  A schedule is stepped once per
**microbatch**, so its step counts count microbatches, not optimizer steps.  It writes the value
itself (not a factor of the initial one), may run next to torch's own lr schedulers, and holds its
last value past its end.

A norm threshold is warmed up the other way round than an lr: it starts *high*, so that the first
windows are short, and comes down.

Source of the shapes: torch-gqc and its README; there they extrapolate past their end.
"""

from gqc.schedules.builders import (
    NormWarmupScheduler,
    cosine_with_warmup,
    get_constant_schedule,
    get_curved_batch_schedule,
    get_direct_cosine_annealing_with_warmup,
    get_linear_schedule,
    get_norm_threshold_cosine_annealing_with_warmup,
    get_quadratic_batch_schedule,
    power_growth,
)
from gqc.schedules.draws import DrawsSchedule
from gqc.schedules.writers import THRESHOLD, ParamGroupSchedule, PiecewiseSchedule, interpolate

__all__ = [
    "THRESHOLD", "DrawsSchedule", "NormWarmupScheduler", "ParamGroupSchedule", "PiecewiseSchedule",
    "cosine_with_warmup", "get_constant_schedule", "get_curved_batch_schedule",
    "get_direct_cosine_annealing_with_warmup", "get_linear_schedule",
    "get_norm_threshold_cosine_annealing_with_warmup", "get_quadratic_batch_schedule",
    "interpolate", "power_growth",
]  # fmt: skip
