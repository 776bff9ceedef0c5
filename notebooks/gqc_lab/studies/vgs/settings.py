"""The knobs of training under gradient noise, their ranges, and their values by scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gqc_lab.errors import check_name
from gqc_lab.loop.placement import DTYPES

TASKS = ("digits", "values")
OPTIMIZERS = ("sgd", "momentum", "adamw")


@dataclass(frozen=True)
class VGSTrainingConfig:
    """Everything that decides a run; use `config` for values that fit a scale.

    Args:
        task: ``"digits"`` (classify, with wrong labels) or ``"values"`` (TD targets).
        optimizer: ``"sgd"``, ``"momentum"`` (SGD with 0.9) or ``"adamw"``.
        scale: name of the preset that the values come from.
        steps: optimizer steps, each of ``batch_size`` examples.
        evaluation_steps: steps between evaluations; there is always one at the end.
        width, depth: see `gqc_lab.models.mlp.MLPConfig`.
        lr: constant after a linear warmup of ``lr_warmup`` steps.
        alpha, beta, warmup_steps, estimator, variance_cap, min_scaling_factor, percentile: see
            `gqc.scalers.VarianceGradientScaler`; alpha 0 measures and scales nothing.
        constant_factor: multiply all gradients by it after ``warmup_steps``: what a scaler does
            that does not react.  None: don't.
        label_noise: digits: share of the training labels that are wrong.
        reward_noise, discount: values: see `gqc_lab.data.markov.make_chain`.
        momentum: of SGD where the optimizer has it.
        beta1, beta2, weight_decay: of AdamW.
        seed: of weights, batches and wrong labels; the chain and the split are always the same.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``; dtype: of the parameters.
    Raises:
        ValueError: a value out of its range, one line naming it.
    """

    task: str
    optimizer: str
    scale: str
    steps: int
    batch_size: int
    evaluation_steps: int
    width: int
    depth: int
    lr: float
    lr_warmup: int = 20
    alpha: float = 0.1
    beta: float = 0.99
    warmup_steps: int = 100
    estimator: str = "sketch"
    variance_cap: float | None = 50.0
    min_scaling_factor: float = 0.1
    percentile: float = 0.9
    constant_factor: float | None = None
    label_noise: float = 0.3
    reward_noise: float = 1.0
    discount: float = 0.9
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_name("task", self.task, TASKS)
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        check_name("scale", self.scale, SCALES)
        check_name("dtype", self.dtype, DTYPES)
        for name, least in COUNTS.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
                raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
        for name in ("lr", "constant_factor"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise ValueError(f"{name}={value!r}: expected a number above 0")
        if self.constant_factor is not None and self.alpha != 0:
            raise ValueError(
                f"constant_factor={self.constant_factor!r} with alpha={self.alpha!r}: expected "
                "alpha=0, as one of the two scales the gradient"
            )

    @property
    def method(self) -> str:
        """What scales the gradient, in a few words."""
        if self.constant_factor is not None:
            return "constant factor"
        return f"VGS, alpha {self.alpha:g}" if self.alpha else "no scaling"


COUNTS = {
    **dict.fromkeys(("steps", "batch_size", "evaluation_steps", "width"), 1),
    **dict.fromkeys(("depth", "lr_warmup", "warmup_steps", "seed"), 0),
}

#: scale -> sizes; a run of laptop takes some seconds on one core
SCALES: dict[str, dict[str, int]] = {
    "smoke": {"steps": 100, "batch_size": 16, "evaluation_steps": 10, "width": 16, "depth": 2},
    "laptop": {"steps": 1000, "batch_size": 16, "evaluation_steps": 20, "width": 64, "depth": 2},
    "paper": {"steps": 20_000, "batch_size": 16, "evaluation_steps": 100, "width": 512, "depth": 3},
}

#: whose best learning rate is meant: that of the plain optimizer, or that of VGS with alpha 0.1
LR_OF = ("control", "vgs")

#: (task, optimizer) -> lr of `LR_OF`: the least mean validation loss in the last quarter of a
#: laptop run, one seed (100, which no report uses), four to six rates a factor of 3 apart.  The
#: lowest rate that was tried for values by sgd and momentum is the control's best.
TUNED: dict[tuple[str, str], tuple[float, float]] = {
    ("digits", "sgd"): (0.1, 0.6),
    ("digits", "momentum"): (0.01, 0.06),
    ("digits", "adamw"): (3e-3, 1e-2),
    ("values", "sgd"): (3e-3, 2e-2),
    ("values", "momentum"): (3e-4, 2e-3),
    ("values", "adamw"): (3e-4, 1e-3),
}


def config(scale: str = "smoke", *, lr_of: str = "control", **overrides: Any) -> VGSTrainingConfig:
    """The config of a scale, with the learning rate tuned for its task and optimizer.

    Args:
        scale: ``"smoke"``, ``"laptop"`` or ``"paper"``.
        lr_of: whose learning rate: that of ``"control"`` or of ``"vgs"``.
        overrides: any field of `VGSTrainingConfig`; task ``"digits"`` and optimizer ``"sgd"`` if
            none is given.
    Raises:
        ValueError: unknown scale or field, or a value out of its range.
    """
    check_name("scale", scale, SCALES)
    check_name("lr_of", lr_of, LR_OF)
    for name in overrides:
        check_name("field", name, [f.name for f in fields(VGSTrainingConfig)])
    values = {"task": "digits", "optimizer": "sgd", **SCALES[scale], **overrides}
    check_name("task", values["task"], TASKS)
    check_name("optimizer", values["optimizer"], OPTIMIZERS)
    tuned = TUNED[values["task"], values["optimizer"]]
    values.setdefault("lr", tuned[LR_OF.index(lr_of)])
    return VGSTrainingConfig(scale=scale, **values)


def comparison(
    scale: str,
    tasks: Sequence[str],
    optimizers: Sequence[str],
    alphas: Sequence[float],
    seeds: Iterable[int],
    **options: Any,
) -> list[VGSTrainingConfig]:
    r"""Configs of a fair comparison: no scaling, each alpha, and a factor that does not react.

    The constant factor is what VGS with alpha 0.1 makes of a variance that is never resolved,
    :math:`1/(1 + 0.1 V_\max)`, after the same warmup (with no cap: of 50).

    Args:
        alphas: those > 0; ``options``: for `config`.
    """
    cap = options.get("variance_cap") or 50.0
    ways: list[dict[str, Any]] = [{"alpha": 0.0}, *({"alpha": a} for a in alphas)]
    ways.append({"alpha": 0.0, "constant_factor": 1 / (1 + 0.1 * cap)})
    return [
        config(scale, task=task, optimizer=optimizer, seed=seed, **{**options, **way})
        for task in tasks
        for optimizer in optimizers
        for seed in seeds
        for way in ways
    ]
