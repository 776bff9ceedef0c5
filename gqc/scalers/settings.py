"""Hyperparameters of the variance gradient scaler, checked whenever one changes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from gqc.scalers.aggregate import AGGREGATES
from gqc.scalers.compiled_elementwise import CompiledElementwise
from gqc.scalers.published import MeanSquare, PublishedEstimator, Spatial, TensorMean, TensorSpatial
from gqc.scalers.variance import Elementwise, Sketch, VarianceEstimator

PUBLISHED: dict[str, type[PublishedEstimator]] = {
    cls.name: cls for cls in (MeanSquare, TensorMean, TensorSpatial, Spatial)
}
ESTIMATORS = ("sketch", "elementwise", *PUBLISHED)
GRANULARITIES = ("global", "group", "tensor", "element")
PUBLISHED_KEYS = {
    "variance_gradient_scaling": "enabled",
    "vgs_beta": "beta",
    "vgs_alpha": "alpha",
    "vgs_warmup_steps": "warmup_steps",
}


@dataclass(frozen=True)
class Settings:
    """See :class:`~gqc.scalers.vgs.VarianceGradientScaler` for what each one means."""

    enabled: bool = True
    beta: float = 0.99
    alpha: float = 0.1
    eps: float = 1e-8
    warmup_steps: int = 100
    min_scaling_factor: float = 0.1
    variance_cap: float | None = 50.0
    estimator: str = "sketch"
    percentile: float = 0.9
    aggregate: str = "percentile"
    granularity: str = "global"
    sketch_size: int = 64
    sketch_seed: int = 0
    track_spatial: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        one_of("estimator", self.estimator, ESTIMATORS)
        one_of("aggregate", self.aggregate, AGGREGATES)
        one_of("granularity", self.granularity, GRANULARITIES)
        _check("beta", self.beta, _is_number(self.beta) and 0 < self.beta < 1, "in (0, 1)")
        _check("alpha", self.alpha, _is_number(self.alpha) and self.alpha >= 0, "finite, >= 0")
        _check("eps", self.eps, _is_number(self.eps) and self.eps > 0, "finite, > 0")
        _check("warmup_steps", self.warmup_steps, _is_count(self.warmup_steps, 0), "integer >= 0")
        smallest, cap, level = self.min_scaling_factor, self.variance_cap, self.percentile
        _check(
            "min_scaling_factor", smallest, _is_number(smallest) and 0 <= smallest <= 1, "[0, 1]"
        )
        _check("variance_cap", cap, cap is None or (_is_number(cap) and cap > 0), "> 0 or None")
        _check("percentile", level, _is_number(level) and 0 <= level <= 1, "in [0, 1]")
        _check("sketch_size", self.sketch_size, _is_count(self.sketch_size, 1), "integer >= 1")
        _check("sketch_seed", self.sketch_seed, _is_count(self.sketch_seed, 0), "integer >= 0")
        for name in ("enabled", "track_spatial", "compile"):
            value = getattr(self, name)
            _check(name, value, isinstance(value, bool), "True or False")
        if self.granularity == "element" and self.estimator != "elementwise":
            raise ValueError(
                f"granularity='element' with estimator={self.estimator!r}: only "
                "estimator='elementwise' knows single elements"
            )
        if self.compile and (self.estimator in PUBLISHED or self.granularity == "element"):
            raise ValueError(
                f"compile=True with estimator={self.estimator!r} and granularity="
                f"{self.granularity!r}: expected 'sketch' or 'elementwise', and not 'element'"
            )

    def changed(self, config: Mapping[str, Any]) -> Settings:
        """A copy with the values of ``config``; raises ValueError for an unknown key."""
        if unknown := [key for key in config if key not in asdict(self)]:
            raise ValueError(
                f"unknown setting {unknown[0]!r}: expected one of {list(asdict(self))}"
            )
        return replace(self, **config)

    def build(self, params: Sequence[Tensor]) -> VarianceEstimator:
        """The estimator, with empty statistics, for ``params``."""
        if self.estimator == "sketch":
            return Sketch(params, self.beta, self.sketch_size, self.sketch_seed, self.compile)
        if self.estimator == "elementwise":
            if self.compile:
                return CompiledElementwise(params, self.beta)
            return Elementwise(params, self.beta, per_element=self.granularity == "element")
        return PUBLISHED[self.estimator](params, self.beta, self.eps)


def one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raise ValueError, with the nearest allowed name, unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0)
        raise ValueError(
            f"{name}={value!r}: did you mean {near[0]!r}? Expected one of {[*allowed]}"
        )


def from_published_keys(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from a training configuration with the published keys.

    Raises: ValueError: an unknown key that starts with ``vgs_``.
    """
    arguments = {}
    for key, value in mapping.items():
        if key in PUBLISHED_KEYS:
            arguments[PUBLISHED_KEYS[key]] = value
        elif str(key).startswith("vgs_"):
            one_of("key", key, PUBLISHED_KEYS)
    return arguments


def _check(name: str, value: Any, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value!r}: expected {allowed}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
