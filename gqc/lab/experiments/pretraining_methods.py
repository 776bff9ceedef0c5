"""The methods that pretraining compares: when each lets AdamW step, by which schedule or control.

A further method is one function and one line in `WRAPPERS`, its name in
``pretraining_config.METHODS``, and its schedule, if any, in `make_schedules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import AdamW

from gqc.lab.controls import Control, Controls, Spec
from gqc.lab.experiments.pretraining_config import PretrainingConfig
from gqc.lab.norm_schedule import NormSchedule, norm_controls, norm_schedule
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
)

__all__ = ["WRAPPERS", "make_controls", "make_schedules"]


def _wrap_adamw(adamw: AdamW, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperSBC(
        adamw,
        physical_batch_size=c.microbatch_size,
        logical_batch_size=c.accumulation * c.microbatch_size,
        max_draws=c.accumulation,
    )


def _wrap_gnts(adamw: AdamW, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperGNTS(adamw, min_draws=c.min_draws, max_draws=c.max_draws)


def _wrap_gns(adamw: AdamW, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperGNS(
        adamw, c.noise_tolerance, min_draws=max(2, c.min_draws), max_draws=c.max_draws
    )


def _wrap_normtest(adamw: AdamW, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperNormTest(
        adamw, c.theta, min_draws=max(2, c.min_draws), max_draws=c.max_draws
    )


def _wrap_mht(adamw: AdamW, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperMHT(
        adamw,
        confidence=c.confidence,
        error_tolerance=c.error_tolerance,
        min_draws=max(2, c.min_draws),
        max_draws=c.max_draws,
    )


def _wrap_gnr(adamw: AdamW, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperGNR(
        adamw, c.target_gradient_norm, c.gnr_mode, min_draws=c.min_draws, max_draws=c.max_draws
    )


def _wrap_sbc(adamw: AdamW, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperSBC(
        adamw,
        physical_batch_size=c.microbatch_size,
        logical_batch_size=c.microbatch_size,
        max_draws=c.final_accumulation,
    )


def _wrap_replay(adamw: AdamW, c: PretrainingConfig) -> OptimizerWrapper:
    return OptimizerWrapperReplay(adamw, draws=c.draws)


#: method -> the wrapper that decides when AdamW steps
WRAPPERS: dict[str, Callable[[AdamW, PretrainingConfig], OptimizerWrapper]] = {
    "adamw": _wrap_adamw,
    "gnts": _wrap_gnts,
    "gns": _wrap_gns,
    "normtest": _wrap_normtest,
    "mht": _wrap_mht,
    "gnr": _wrap_gnr,
    "sbc": _wrap_sbc,
    "replay": _wrap_replay,
}

#: method -> (its tunable, a field of the config and a live control; what it is)
TUNABLES = {
    "gns": ("noise_tolerance", "noise-to-signal ratio allowed in the mean gradient"),
    "normtest": ("theta", "square root of the noise-to-signal ratio allowed in the mean gradient"),
    "mht": ("error_tolerance", "half-width of the mean loss's interval, as a share of the mean"),
    "gnr": ("target_gradient_norm", "norm that every gradient gets [loss/parameter]"),
}


def make_controls(c: PretrainingConfig) -> Controls:
    """What may be changed while the method of ``c`` runs."""
    controls: dict[str, Spec] = {
        "lr_scale": Control(1.0, doc="factor of the scheduled learning rate")
    }
    if c.method in TUNABLES:
        name, doc = TUNABLES[c.method]
        controls[name] = Control(getattr(c, name), doc=doc)
    if c.method != "gnts":
        return Controls(controls)
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
    return Controls(controls | norm_controls(plan, total), check_together=norm_schedule)


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
