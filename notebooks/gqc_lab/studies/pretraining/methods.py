"""The methods that pretraining compares: when each lets AdamW step, by which schedule or control.

Between a wrapper and AdamW there may be a variance gradient scaler (`scale`).

A further method is one function and one line in `WRAPPERS`, its name in
``pretraining_config.METHODS``, and its schedule, if any, in `make_schedules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import AdamW, Optimizer

from gqc.scalers import VarianceGradientScaler
from gqc.schedules import (
    THRESHOLD,
    ParamGroupSchedule,
    get_constant_schedule,
    get_direct_cosine_annealing_with_warmup,
    get_quadratic_batch_schedule,
)
from gqc.wrappers import (
    OptimizerWrapper,
    OptimizerWrapperGNR,
    OptimizerWrapperGNS,
    OptimizerWrapperGNTS,
    OptimizerWrapperMHT,
    OptimizerWrapperNormTest,
    OptimizerWrapperReplay,
    OptimizerWrapperSBC,
    OptimizerWrapperVGS,
)
from gqc_lab.loop.controls import Control, Controls, Spec
from gqc_lab.loop.norm_schedule import NormSchedule, has_norm_schedule, norm_controls, norm_schedule
from gqc_lab.loop.scaler_controls import has_scaler, scaler_controls, scaler_settings
from gqc_lab.studies.pretraining.settings import PretrainingConfig

__all__ = ["WRAPPERS", "make_controls", "make_schedules", "scale"]


def scale(adamw: AdamW, c: PretrainingConfig) -> tuple[Optimizer, VarianceGradientScaler | None]:
    """What a wrapper is to wrap, and the scaler in it, if ``c`` asks for one."""
    if c.vgs_alpha is None:
        return adamw, None
    scaled = OptimizerWrapperVGS(
        adamw,
        alpha=c.vgs_alpha,
        beta=c.vgs_beta,
        warmup_steps=c.vgs_warmup_steps,
        estimator=c.vgs_estimator,
    )
    return scaled, scaled.scaler


def _wrap_adamw(optimizer: Optimizer, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperSBC(
        optimizer,
        physical_batch_size=c.microbatch_size,
        logical_batch_size=c.accumulation * c.microbatch_size,
        max_draws=c.accumulation,
    )


def _wrap_gnts(optimizer: Optimizer, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperGNTS(optimizer, min_draws=c.min_draws, max_draws=c.max_draws)


def _wrap_gns(optimizer: Optimizer, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperGNS(
        optimizer,
        c.noise_tolerance,
        reactive=c.gns_reactive,
        min_draws=max(2, c.min_draws),
        max_draws=c.max_draws,
    )


def _wrap_normtest(optimizer: Optimizer, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperNormTest(
        optimizer, c.theta, min_draws=max(2, c.min_draws), max_draws=c.max_draws
    )


def _wrap_mht(optimizer: Optimizer, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperMHT(
        optimizer,
        confidence=c.confidence,
        error_tolerance=c.error_tolerance,
        min_draws=max(2, c.min_draws),
        max_draws=c.max_draws,
    )


def _wrap_gnr(optimizer: Optimizer, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperGNR(
        optimizer, c.target_gradient_norm, c.gnr_mode, min_draws=c.min_draws, max_draws=c.max_draws
    )


def _wrap_sbc(optimizer: Optimizer, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperSBC(
        optimizer,
        physical_batch_size=c.microbatch_size,
        logical_batch_size=c.microbatch_size,
        max_draws=c.final_accumulation,
    )


def _wrap_replay(optimizer: Optimizer, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperReplay(optimizer, draws=c.draws)


#: method -> the wrapper that decides when AdamW steps
WRAPPERS: dict[str, Callable[[Optimizer, PretrainingConfig], OptimizerWrapper]] = {
    "adamw": _wrap_adamw,
    "gnts": _wrap_gnts,
    "gns": _wrap_gns,
    "normtest": _wrap_normtest,
    "mht": _wrap_mht,
    "gnr": _wrap_gnr,
    "sbc": _wrap_sbc,
    "replay": _wrap_replay,
    "vgs": _wrap_adamw,
}

#: method -> (its tunable, a field of the config and a live control; what it is)
TUNABLES = {
    "gns": ("noise_tolerance", "noise-to-signal ratio allowed in the mean gradient"),
    "normtest": ("theta", "square root of the noise-to-signal ratio allowed in the mean gradient"),
    "mht": ("error_tolerance", "half-width of the mean loss's interval, as a share of the mean"),
    "gnr": ("target_gradient_norm", "norm that every gradient gets [loss/parameter]"),
}


def make_controls(c: PretrainingConfig, scaler: VarianceGradientScaler | None) -> Controls:
    """What may be changed while the method of ``c`` runs, and ``scaler`` with it."""
    controls: dict[str, Spec] = {
        "lr_scale": Control(1.0, doc="factor of the scheduled learning rate")
    }
    if c.method in TUNABLES:
        name, doc = TUNABLES[c.method]
        controls[name] = Control(getattr(c, name), doc=doc)
    if scaler is not None:
        controls |= scaler_controls(scaler)
    if c.method == "gnts":
        controls |= _threshold_controls(c)
    return Controls(controls, check_together=_check_together)


def _check_together(values: Mapping[str, Any]) -> None:
    if has_norm_schedule(values):
        norm_schedule(values)
    if has_scaler(values):
        scaler_settings(values)


def _threshold_controls(c: PretrainingConfig) -> dict[str, Spec]:
    total = c.num_microbatches
    plan = NormSchedule(
        c.start_norm,
        c.end_norm,
        c.norm_warmup_multiplier,
        round(c.norm_warmup * total),
        c.norm_curve,
        c.norm_exponent,
        c.norm_points,
    )
    return norm_controls(plan, total)


def make_schedules(
    wrapper: OptimizerWrapper, c: PretrainingConfig, controls: Mapping[str, Any]
) -> list[ParamGroupSchedule]:
    """The learning rate's schedule and those of the method of ``c``, under these controls."""
    total, lr = c.num_microbatches, c.lr * controls["lr_scale"]
    schedules = [
        get_direct_cosine_annealing_with_warmup(
            wrapper, lr, round(c.lr_warmup * total), total, min_value=lr * c.min_lr
        )
    ]
    if c.method == "gnts":
        plan = norm_schedule(controls)
        schedules.append(
            ParamGroupSchedule(wrapper, THRESHOLD, lambda step: plan.threshold(step, total))
        )
    if c.method == "sbc":
        schedules.append(
            get_quadratic_batch_schedule(
                wrapper, c.microbatch_size, c.final_accumulation * c.microbatch_size, total
            )
        )
    if c.method in TUNABLES:
        name, _ = TUNABLES[c.method]
        schedules.append(get_constant_schedule(wrapper, controls[name], key=name))
    return schedules
