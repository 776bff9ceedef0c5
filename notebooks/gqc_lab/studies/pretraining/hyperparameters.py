"""The wrapper of a method, what may be changed while it runs, and its values at each microbatch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from gqc import wrappers
from gqc.scalers import VarianceGradientScaler
from gqc.schedules import THRESHOLD, cosine_with_warmup, interpolate, power_growth
from gqc_lab.loop.controls import Controls
from gqc_lab.loop.norm_schedule import NormSchedule, norm_controls, norm_schedule
from gqc_lab.loop.scaler_controls import scaler_controls
from gqc_lab.loop.settings import Setting, control
from gqc_lab.studies.pretraining.methods import METHODS
from gqc_lab.studies.pretraining.settings import PretrainingConfig

DECAY = 0.2  #: share of a run in which "constant, then decay" decays, in a straight line


def wrap(optimizer: Optimizer, c: PretrainingConfig) -> wrappers.OptimizerWrapper:
    """Return ``optimizer`` in the wrapper of the method of ``c``."""
    method = METHODS[c.method]
    kind, arguments = getattr(wrappers, method.wrapper), method.arguments(c)
    if method.has_draws:
        fewest = max(kind.fewest_draws, c.min_draws)
        arguments |= {"min_draws": fewest, "max_draws": c.max_draws}
    wrapper: wrappers.OptimizerWrapper = kind(optimizer, **arguments)
    return wrapper


def make_controls(c: PretrainingConfig, scaler: VarianceGradientScaler | None) -> Controls:
    """Return what may be changed while the method of ``c`` runs, and ``scaler`` with it."""
    controls = {"lr_scale": Setting(1.0, "factor of the scheduled learning rate", low=0)}
    check: Callable[[Mapping[str, Any]], object] | None = None
    if tunable := METHODS[c.method].tunable:
        controls[tunable] = control(c, tunable, low=0, above=-math.inf)  # 0: draw up to max_draws
    if scaler is not None:
        controls |= scaler_controls(scaler)
    if c.method.startswith("gnts"):
        total = c.num_microbatches
        names = ("start_norm", "end_norm", "norm_warmup_multiplier", "norm_curve")
        values = {name: getattr(c, name) for name in (*names, "norm_exponent", "norm_points")}
        schedule = NormSchedule(norm_warmup_microbatches=round(c.norm_warmup * total), **values)
        controls |= norm_controls(schedule, total)
        check = norm_schedule
    return Controls(controls, check)


def group_values(
    c: PretrainingConfig, controls: Mapping[str, Any], microbatch: int, typical: float = 1.0
) -> dict[str, float]:
    """Return what stands in the wrapper's param groups at a microbatch, counted from 0.

    Args:
        typical: norm of a single microbatch, for a relative threshold.
    """
    total, lr = c.num_microbatches, c.lr * controls["lr_scale"]
    values = {"lr": _learning_rate(c, lr, microbatch)}
    if c.method.startswith("gnts"):
        factor = typical if c.method == "gnts relative" else 1.0
        values[THRESHOLD] = norm_schedule(controls).threshold(microbatch, total) * factor
    if c.method == "sbc":
        most, exponent = c.final_accumulation, c.growth_exponent
        # Rounded, or a batch of hardly more than one microbatch would be two of them.
        draws = round(power_growth(total, 1, most, exponent, microbatch))
        values["logical_batch_size"] = draws * c.microbatch_size
    if tunable := METHODS[c.method].tunable:
        values[tunable] = controls[tunable]
    return values


def _learning_rate(c: PretrainingConfig, peak: float, microbatch: int) -> float:
    """Return the learning rate at a microbatch: a warmup, and what ``lr_curve`` says."""
    total = c.num_microbatches
    warmup, last = round(c.lr_warmup * total), peak * c.min_lr
    step = microbatch + 1  # a warmup from 0 would make the first microbatch a step of size 0
    if c.lr_curve == "cosine":
        return cosine_with_warmup(warmup, total, 0.0, peak, last, step)
    decay = (round((1 - DECAY) * total), peak), (total, last)
    is_level = c.lr_curve == "constant"
    return interpolate([(0, 0.0), (warmup, peak), *(() if is_level else decay)], step)
