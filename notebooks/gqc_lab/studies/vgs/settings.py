"""Settings of training under gradient noise: meaning, ranges and defaults, and values by scale."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqc_lab.errors import check_name
from gqc_lab.loop.scaler_controls import SCALER
from gqc_lab.loop.settings import Config, Setting, make_config, read_tuned, setting

TASKS = ("digits", "values")
OPTIMIZERS = ("sgd", "momentum", "adamw")
_COUNT = Setting(low=1)

#: scale -> sizes; a run of laptop takes some seconds on one core
SCALES: dict[str, dict[str, int]] = {
    "smoke": {"steps": 60, "batch_size": 16, "evaluation_steps": 10, "width": 16, "depth": 2},
    "laptop": {"steps": 1000, "batch_size": 16, "evaluation_steps": 20, "width": 64, "depth": 2},
    "paper": {"steps": 20_000, "batch_size": 16, "evaluation_steps": 100, "width": 512, "depth": 3},
}

#: whose best learning rate is meant: that of the plain optimizer, of VGS with alpha 0.1, or, of a
#: finer grid, of VGS with its aggregate
LR_OF = ("control", "vgs", "aggregate")

#: (task, optimizer, one of `LR_OF`, or an aggregate) -> learning rate
TUNED = read_tuned(Path(__file__).with_name("tuned.csv"), ("task", "optimizer", "lr_of"), "loss")


@dataclass(frozen=True, kw_only=True)
class VGSTrainingConfig(Config):
    """Everything that decides a run; use `config` for values that fit a scale."""

    task: str = setting(meaning="classify with wrong labels, or regress TD targets", choices=TASKS)
    optimizer: str = setting(meaning="momentum is SGD's, with 0.9", choices=OPTIMIZERS)
    scale: str = setting(meaning="steps and size of the network", choices=tuple(SCALES))
    steps: int = setting(meaning="optimizer steps", label="optimizer steps", like=_COUNT)
    batch_size: int = setting(meaning="examples per step", like=_COUNT)
    evaluation_steps: int = setting(
        meaning="steps between evaluations; there is always one at the end", like=_COUNT
    )
    width: int = setting(meaning="units of a hidden layer", like=_COUNT)
    depth: int = setting(meaning="hidden layers", low=0)
    lr: float = setting(meaning="learning rate after its warmup", label="learning rate", above=0)
    lr_warmup: int = setting(20, "steps of the learning rate's linear warmup", low=0)
    alpha: float = setting(0.1, like=SCALER["alpha"])
    beta: float = setting(0.99, like=SCALER["beta"])
    warmup_steps: int = setting(100, like=SCALER["warmup_steps"])
    estimator: str = setting(
        "sketch", "estimator of the variance", choices="gqc.scalers.settings:ESTIMATORS"
    )
    variance_cap: float | None = setting(
        50.0, "the variance counts up to this; None: as far as beta resolves it", above=0
    )
    min_scaling_factor: float = setting(0.1, like=SCALER["min_scaling_factor"])
    percentile: float = setting(0.9, like=SCALER["percentile"])
    aggregate: str = setting(
        "percentile", "of the variance over tensors", choices="gqc.scalers.settings:AGGREGATES"
    )
    constant_factor: float | None = setting(None, "of all gradients after the warmup", above=0)
    label_noise: float = setting(0.3, "digits: share of wrong training labels", low=0, high=1)
    reward_noise: float = setting(1.0, "values: deviation of a reward", low=0)
    discount: float = setting(0.9, "values: of later rewards", low=0, below=1)
    momentum: float = setting(0.9, "of SGD where the optimizer has it", low=0, below=1)
    beta1: float = setting(0.9, "AdamW's decay of the first moment", low=0, below=1)
    beta2: float = setting(0.999, "AdamW's decay of the second moment", low=0, below=1)
    weight_decay: float = setting(0.0, "of AdamW", low=0)

    def check_together(self) -> None:
        if self.constant_factor is not None and self.alpha != 0:
            raise ValueError(
                f"constant_factor={self.constant_factor!r} with alpha={self.alpha!r}: expected "
                "alpha=0, as one of the two scales the gradient"
            )

    @property
    def method(self) -> str:
        """What scales the gradient."""
        if self.constant_factor is not None:
            return "constant factor"
        aggregate = "" if self.aggregate == "percentile" else f" of the {self.aggregate}"
        return f"VGS{aggregate}, alpha {self.alpha:g}" if self.alpha else "no scaling"


def config(scale: str = "smoke", *, lr_of: str = "control", **overrides: Any) -> VGSTrainingConfig:
    """Return the config of a scale, with the learning rate tuned for its task and optimizer.

    Args:
        lr_of: whose learning rate, of `LR_OF`.
        overrides: any field of `VGSTrainingConfig`; task and optimizer are digits and sgd by
            default.
    Raises: ValueError: unknown scale or field, or a value out of its range.
    """
    check_name("lr_of", lr_of, LR_OF)

    def tuned(values: dict[str, Any]) -> dict[str, Any]:
        whose = values["aggregate"] if lr_of == "aggregate" else lr_of
        key = (values["task"], values["optimizer"], whose)
        if key not in TUNED:
            raise ValueError(f"lr_of={lr_of!r}: nothing was tuned for {', '.join(key)}")
        return TUNED[key]

    values = {"task": "digits", "optimizer": "sgd", "aggregate": "percentile", **overrides}
    return make_config(VGSTrainingConfig, SCALES, scale, values, tuned)


def comparison(
    scale: str,
    tasks: Sequence[str],
    optimizers: Sequence[str],
    alphas: Sequence[float],
    seeds: Iterable[int],
    **options: Any,
) -> list[VGSTrainingConfig]:
    r"""Return configs of a fair comparison: no scaling, each alpha, a factor that does not react.

    The constant factor is what VGS with alpha 0.1 makes of a variance that is never resolved,
    :math:`1/(1 + 0.1 V_\max)`, after the same warmup (with no cap: of 50).
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
