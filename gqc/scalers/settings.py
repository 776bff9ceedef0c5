"""Hyperparameters of the variance gradient scaler, checked whenever one changes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from torch import Tensor

from gqc.checks import expect, is_count, is_number, one_of, plain
from gqc.scalers.differences import Differences
from gqc.scalers.elementwise import Elementwise
from gqc.scalers.published import MeanSquare, Spatial, TensorMean, TensorSpatial
from gqc.scalers.sketch import Sketch
from gqc.scalers.variance import VarianceEstimator

ESTIMATORS: dict[str, type[VarianceEstimator]] = {
    cls.name: cls
    for cls in (Sketch, Differences, Elementwise, MeanSquare, TensorMean, TensorSpatial, Spatial)
}
AGGREGATES = ("percentile", "mean", "numel_weighted", "max")
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

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            object.__setattr__(self, name, plain(value))
        one_of("estimator", self.estimator, ESTIMATORS)
        one_of("aggregate", self.aggregate, AGGREGATES)
        one_of("granularity", self.granularity, GRANULARITIES)
        expect(is_number(self.beta) and 0 < self.beta < 1, "beta", self.beta, "in (0, 1)")
        expect(is_number(self.alpha) and self.alpha >= 0, "alpha", self.alpha, "finite, >= 0")
        expect(is_number(self.eps) and self.eps > 0, "eps", self.eps, "finite, > 0")
        expect(is_count(self.warmup_steps, 0), "warmup_steps", self.warmup_steps, "integer >= 0")
        smallest, cap, level = self.min_scaling_factor, self.variance_cap, self.percentile
        expect(is_number(smallest) and 0 <= smallest <= 1, "min_scaling_factor", smallest, "[0, 1]")
        expect(cap is None or (is_number(cap) and cap > 0), "variance_cap", cap, "> 0 or None")
        expect(is_number(level) and 0 <= level <= 1, "percentile", level, "in [0, 1]")
        expect(is_count(self.sketch_size, 1), "sketch_size", self.sketch_size, "integer >= 1")
        expect(is_count(self.sketch_seed, 0), "sketch_seed", self.sketch_seed, "integer >= 0")
        for name in ("enabled", "track_spatial"):
            value = getattr(self, name)
            expect(isinstance(value, bool), name, value, "True or False")
        is_known = self.granularity != "element" or self.estimator == "elementwise"
        others = "another, or estimator='elementwise', which alone knows single elements"
        expect(is_known, "granularity", self.granularity, others)

    def changed(self, config: Mapping[str, Any]) -> Self:
        """A copy with the values of ``config``; raises ValueError for an unknown key."""
        if unknown := [key for key in config if key not in asdict(self)]:
            raise ValueError(f"unknown setting {unknown[0]!r}: expected one of {[*asdict(self)]}")
        return replace(self, **config)

    def build(self, params: Sequence[Tensor]) -> VarianceEstimator:
        """Return the estimator, with empty statistics, for ``params``."""
        return ESTIMATORS[self.estimator](params, self)


def from_published_keys(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from a configuration that holds the published keys, at any depth.

    Raises: ValueError: an unknown key that starts with ``vgs_``, or one key with two values.
    """
    arguments: dict[str, Any] = {}
    for key, value in mapping.items():
        found: dict[str, Any] = {}
        if isinstance(value, Mapping):
            found = from_published_keys(value)
        elif key in PUBLISHED_KEYS:
            found = {PUBLISHED_KEYS[key]: value}
        elif str(key).startswith("vgs_"):
            one_of("key", key, PUBLISHED_KEYS)
        for name, own in found.items():
            if arguments.setdefault(name, own) != own:
                raise ValueError(f"{name} is both {arguments[name]!r} and {own!r} in the mapping")
    return arguments
