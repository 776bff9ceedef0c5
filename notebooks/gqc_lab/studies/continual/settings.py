"""The knobs of continual learning, their ranges, and their values by scale and method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gqc.upgd.utility import NORMALIZATIONS
from gqc_lab.data.images import DATA_SETS
from gqc_lab.data.streams import KINDS
from gqc_lab.errors import check_name
from gqc_lab.loop.placement import DTYPES
from gqc_lab.studies.continual.methods import GATED, METHODS, NOISY
from gqc_lab.studies.continual.tuned import TUNED


@dataclass(frozen=True)
class ContinualConfig:
    """Everything that decides a run; use `config` for values that fit a scale.

    Args:
        stream: see `gqc_lab.data.streams`; data: see `gqc_lab.data.images`.
        method: one of `METHODS`, see `gqc_lab.studies.continual.training`.
        scale: name of the preset that the values come from.
        num_tasks, task_examples: length of the stream; batch_size: a divisor of ``task_examples``.
        measure_every: steps between those that plasticity and noise are measured at.
        probe_examples: examples of a task, its first ones, that units and rank are measured on.
        width, depth: see `gqc_lab.models.mlp.MLPConfig`; depth at least 1.
        lr: constant.
        weight_decay: all but sgd and pgd; sigma: the methods with noise.
        beta_utility: upgd and adaptive_upgd; beta1, beta2: adamw, adaptive_upgd and upgdw.
        normalization, adaptive_noise: the methods with gates, see `gqc.upgd.UPGD`.
        vgs: scale gradients by their variance; vgs_alpha, vgs_beta, vgs_warmup_steps: see
            `gqc.scalers.VarianceGradientScaler`.
        gradient_factor: multiplies every gradient, before VGS: what a scaler does that does not
            react.
        seed: of weights, stream and noise.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``; dtype: of the parameters.
    Raises:
        ValueError: a value out of its range, one line naming it.
    """

    stream: str
    method: str
    scale: str
    num_tasks: int
    task_examples: int
    batch_size: int
    measure_every: int
    probe_examples: int
    width: int
    depth: int
    lr: float
    data: str = "digits"
    weight_decay: float = 0.0
    sigma: float = 0.0
    beta_utility: float = 0.999
    beta1: float = 0.9
    beta2: float = 0.999
    normalization: str = "minmax"
    adaptive_noise: bool = False
    vgs: bool = False
    vgs_alpha: float = 0.1
    vgs_beta: float = 0.99
    vgs_warmup_steps: int = 100
    gradient_factor: float = 1.0
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_name("stream", self.stream, KINDS)
        check_name("data", self.data, DATA_SETS)
        check_name("method", self.method, METHODS)
        check_name("scale", self.scale, SCALES)
        check_name("normalization", self.normalization, NORMALIZATIONS)
        check_name("dtype", self.dtype, DTYPES)
        for name, least in COUNTS.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
                raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
        for name in ("lr", "gradient_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a number above 0")
        for name in ("weight_decay", "sigma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a number >= 0")
        self._check_together()

    def _check_together(self) -> None:
        if self.task_examples % self.batch_size:
            raise ValueError(
                f"task_examples={self.task_examples}: expected a multiple of "
                f"batch_size={self.batch_size}"
            )
        if self.adaptive_noise and self.method not in GATED:
            raise ValueError(
                f"adaptive_noise=True with method={self.method!r}: expected one of "
                f"{', '.join(GATED)}"
            )
        if self.sigma and self.method not in NOISY:
            raise ValueError(
                f"sigma={self.sigma!r} with method={self.method!r}: expected 0, as it has no noise"
            )
        if self.weight_decay and self.method in ("sgd", "pgd"):
            raise ValueError(
                f"weight_decay={self.weight_decay!r} with method={self.method!r}: expected 0; "
                "'l2' and 'shrink_perturb' are the methods with decay"
            )

    @property
    def name(self) -> str:
        """The method with what is added to it, in a few words."""
        noise = ", adaptive noise" if self.adaptive_noise else ""
        factor = f", gradient x {self.gradient_factor:g}" if self.gradient_factor != 1 else ""
        return self.method + noise + (", VGS" if self.vgs else "") + factor


COUNTS = {
    **dict.fromkeys(("num_tasks", "task_examples", "batch_size", "width", "depth"), 1),
    **dict.fromkeys(("measure_every", "probe_examples"), 1),
    **dict.fromkeys(("vgs_warmup_steps", "seed"), 0),
}

#: scale -> sizes; a run of laptop takes some seconds on one core, paper is as in the source
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "num_tasks": 4,
        "task_examples": 240,
        "batch_size": 8,
        "measure_every": 5,
        "probe_examples": 64,
        "width": 32,
        "depth": 2,
    },
    "laptop": {
        "num_tasks": 30,
        "task_examples": 1600,
        "batch_size": 8,
        "measure_every": 10,
        "probe_examples": 256,
        "width": 64,
        "depth": 2,
    },
    "paper": {
        "data": "mnist",
        "num_tasks": 200,
        "task_examples": 5000,
        "batch_size": 1,
        "measure_every": 1,
        "probe_examples": 512,
        "width": 256,
        "depth": 2,
    },
}


def config(scale: str = "smoke", **overrides: Any) -> ContinualConfig:
    """The config of a scale, with the values tuned (at laptop scale) for its stream and method.

    A method with VGS or adaptive noise that was not tuned so (`TUNED` has no row of its
    `ContinualConfig.name`) gets the values of the bare method.

    Args:
        scale: ``"smoke"``, ``"laptop"`` or ``"paper"``.
        overrides: any field of `ContinualConfig`; stream ``"input_permuted"`` and method ``"upgd"``
            if none is given.
    Raises:
        ValueError: unknown scale or field, or a value out of its range.
    """
    check_name("scale", scale, SCALES)
    for name in overrides:
        check_name("field", name, [f.name for f in fields(ContinualConfig)])
    values = {"stream": "input_permuted", "method": "upgd", **SCALES[scale], **overrides}
    check_name("stream", values["stream"], KINDS)
    check_name("method", values["method"], METHODS)
    plain = ContinualConfig(scale=scale, **{"lr": 1.0, **values})
    tuned = TUNED.get((plain.stream, plain.name)) or TUNED[plain.stream, plain.method]
    return ContinualConfig(scale=scale, **{**tuned, **values})


def comparison(
    scale: str,
    streams: Sequence[str],
    methods: Sequence[str],
    seeds: Iterable[int],
    **options: Any,
) -> list[ContinualConfig]:
    """Configs of all methods on all streams, seed by seed; ``options`` are for `config`."""
    return [
        config(scale, stream=stream, method=method, seed=seed, **options)
        for stream in streams
        for seed in seeds
        for method in methods
    ]
