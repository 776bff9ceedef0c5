"""The methods that pretraining compares: when each lets AdamW step, by which schedule or control.

A further method is one entry of `METHODS`; a setting of its own is a field of
`gqc_lab.studies.pretraining.settings.PretrainingConfig`.  Between a wrapper and AdamW there may be
a variance gradient scaler (`scale`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import AdamW, Optimizer

from gqc.scalers import VarianceGradientScaler
from gqc.schedules import THRESHOLD, cosine_with_warmup, interpolate, power_growth
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
from gqc_lab.loop.controls import Controls
from gqc_lab.loop.norm_schedule import NormSchedule, norm_controls, norm_schedule
from gqc_lab.loop.scaler_controls import scaler_controls, scaler_settings
from gqc_lab.loop.settings import Setting, control

__all__ = ["CONTROLLERS", "METHODS", "Method", "group_values", "make_controls", "scale", "wrap"]

Config = Any  #: a `PretrainingConfig`, whose module imports this one


@dataclass(frozen=True)
class Method:
    """What decides when AdamW steps.

    Args:
        wrapper: its class.
        arguments: from a config to the wrapper's own arguments.
        has_draws: whether it takes the config's ``min_draws`` and ``max_draws``.
        tunable: field of the config and entry of the wrapper's param groups that may be changed
            while training.
        place: of its colour and dash in every figure; None: what is left.
    """

    wrapper: type[OptimizerWrapper]
    arguments: Callable[[Config], dict[str, Any]]
    has_draws: bool = True
    tunable: str | None = None
    place: int | None = None


def _batch_of(c: Config, logical: int, most: int) -> dict[str, Any]:
    size = c.microbatch_size
    return {"physical_batch_size": size, "logical_batch_size": logical * size, "max_draws": most}


def _constant_batch(c: Config) -> dict[str, Any]:
    return _batch_of(c, c.accumulation, c.accumulation)


METHODS = {
    # every ``accumulation`` microbatches, a constant batch: the control
    "adamw": Method(OptimizerWrapperSBC, _constant_batch, has_draws=False, place=1),
    # when the norm of the mean gradient is under a threshold, which comes down over the run
    "gnts": Method(OptimizerWrapperGNTS, lambda c: {}, place=0),
    # the same, with a threshold relative to the running mean of the norms of single microbatches
    "gnts relative": Method(OptimizerWrapperGNTS, lambda c: {}),
    # when the batch is as large as the gradient noise scale of past windows asks for
    "gns": Method(
        OptimizerWrapperGNS,
        lambda c: {"noise_tolerance": c.noise_tolerance, "reactive": c.gns_reactive},
        tunable="noise_tolerance",
        place=2,
    ),
    # when the noise in the mean gradient is small against it, by this window alone
    "normtest": Method(
        OptimizerWrapperNormTest, lambda c: {"theta": c.theta}, tunable="theta", place=3
    ),
    # when the interval of the mean training loss is narrow
    "mht": Method(
        OptimizerWrapperMHT,
        lambda c: {"confidence": c.confidence, "error_tolerance": c.error_tolerance},
        tunable="error_tolerance",
        place=4,
    ),
    # every ``min_draws`` microbatches, with the mean gradient rescaled to one norm
    "gnr": Method(
        OptimizerWrapperGNR,
        lambda c: {"target_gradient_norm": c.target_gradient_norm, "mode": c.gnr_mode},
        tunable="target_gradient_norm",
        place=6,
    ),
    # a batch that grows on a schedule from 1 to ``final_accumulation`` microbatches
    "sbc": Method(
        OptimizerWrapperSBC,
        lambda c: _batch_of(c, 1, c.final_accumulation),
        has_draws=False,
        place=5,
    ),
    # as often as a recorded run did, whatever the gradient
    "replay": Method(OptimizerWrapperReplay, lambda c: {"draws": c.draws}, has_draws=False),
    # as adamw, with each step's gradient scaled down by its variance over the steps so far; with
    # ``vgs_alpha`` every other method does so too
    "vgs": Method(OptimizerWrapperSBC, _constant_batch, has_draws=False),
}

#: those that are compared with each other; vgs steps every time
CONTROLLERS = [name for name in METHODS if name not in ("vgs", "gnts relative")]


LR_CURVES = ("cosine", "constant", "constant, then decay")
DECAY = 0.2  #: share of a run in which the last of these decays, in a straight line


class TypicalNorm:
    r"""Running mean of the norms of single microbatches: what a relative threshold multiplies.

    :math:`\\bar r = \\sum_k \\beta^{k} r_{t-k} / \\sum_k \\beta^{k}` over the first draws of
    windows, whose norm GNTS reads anyway.
    """

    BETA = 0.99

    def __init__(self) -> None:
        self.total = self.weight = 0.0

    def update(self, wrapper: OptimizerWrapper, stepped: bool) -> None:
        """Take in the norm of the last draw, if it was the first of its window."""
        window: Any = wrapper.last_window if stepped else wrapper
        if window.num_draws == 1 and window.grad_norm is not None:
            self.total = self.BETA * self.total + window.grad_norm
            self.weight = self.BETA * self.weight + 1

    @property
    def mean(self) -> float:
        """The mean; infinite before the first draw, so that it steps at once."""
        return self.total / self.weight if self.weight else math.inf

    def state_dict(self) -> dict[str, float]:
        return {"total": self.total, "weight": self.weight}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.total, self.weight = state["total"], state["weight"]


def wrap(optimizer: Optimizer, c: Config) -> OptimizerWrapper:
    """Return ``optimizer`` in the wrapper of the method of ``c``."""
    method = METHODS[c.method]
    arguments = method.arguments(c)
    if method.has_draws:
        fewest = max(method.wrapper.fewest_draws, c.min_draws)
        arguments |= {"min_draws": fewest, "max_draws": c.max_draws}
    return method.wrapper(optimizer, **arguments)


def scale(adamw: AdamW, c: Config) -> tuple[Optimizer, VarianceGradientScaler | None]:
    """Return what a wrapper is to wrap, and the scaler in it, if ``c`` asks for one."""
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


def make_controls(c: Config, scaler: VarianceGradientScaler | None) -> Controls:
    """Return what may be changed while the method of ``c`` runs, and ``scaler`` with it."""
    controls = {"lr_scale": Setting(1.0, "factor of the scheduled learning rate", low=0)}
    checks: list[Callable[[Mapping[str, Any]], object]] = []
    if tunable := METHODS[c.method].tunable:
        controls[tunable] = control(c, tunable, low=0, above=-math.inf)  # 0: draw up to max_draws
    if scaler is not None:
        controls |= scaler_controls(scaler)
        checks.append(scaler_settings)
    if c.method.startswith("gnts"):
        total = c.num_microbatches
        names = ("start_norm", "end_norm", "norm_warmup_multiplier", "norm_curve")
        values = {name: getattr(c, name) for name in (*names, "norm_exponent", "norm_points")}
        plan = NormSchedule(norm_warmup_microbatches=round(c.norm_warmup * total), **values)
        controls |= norm_controls(plan, total)
        checks.append(norm_schedule)
    return Controls(controls, lambda values: [check(values) for check in checks])


def group_values(
    c: Config, controls: Mapping[str, Any], microbatch: int, typical: float = 1.0
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


def _learning_rate(c: Config, peak: float, microbatch: int) -> float:
    """Return the learning rate at a microbatch: a warmup, and what ``lr_curve`` says."""
    total = c.num_microbatches
    warmup, last = round(c.lr_warmup * total), peak * c.min_lr
    step = microbatch + 1  # a warmup from 0 would make the first microbatch a step of size 0
    if c.lr_curve == "cosine":
        return cosine_with_warmup(warmup, total, 0.0, peak, last, step)
    decay = (round((1 - DECAY) * total), peak), (total, last)
    is_level = c.lr_curve == "constant"
    return interpolate([(0, 0.0), (warmup, peak), *(() if is_level else decay)], step)
