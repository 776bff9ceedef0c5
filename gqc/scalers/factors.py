"""Aggregate an estimator's variances into factors on the gradient, and numbers to log."""

import math
from collections.abc import Callable, Sequence
from itertools import compress
from typing import TypeVar

import torch
from torch import Tensor

from gqc.gradients import local
from gqc.scalers.elementwise import Elementwise
from gqc.scalers.parameters import ParameterList
from gqc.scalers.settings import Settings
from gqc.scalers.variance import Reading, VarianceEstimator

AVERAGES = ("grad_mean_ema_spatial", "grad_var_ema_spatial", "grad_norm_ema", "grad_max_ema")
PERCENTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}

Variance = TypeVar("Variance", float, Tensor)


def scaling_factor(
    variance: Variance, alpha: float, smallest: float, variance_cap: float | None
) -> Variance:
    r"""Return the factor of :mod:`gqc.scalers.vgs`, in the shape of ``variance``, with its letters.

    :math:`\mathrm{clip}(1/(1+\alpha\min(V, V_\max)), f_\min, 1)`; no cap where that is None.
    """
    if not isinstance(variance, Tensor):
        bounded = min(variance, math.inf if variance_cap is None else variance_cap)
        return max(1 / (1 + alpha * bounded), smallest)
    bounded = variance if variance_cap is None else variance.clamp_max(variance_cap)
    return (1 + alpha * bounded).reciprocal().clamp(smallest, 1)


def numbers(
    reading: Reading, factor: float, parameters: ParameterList, settings: Settings
) -> dict[str, float]:
    """Return what is logged, under the published names without "vgs/"."""
    ratios = [*compress(reading.ratios, reading.counted)]
    named = zip(parameters.names, reading.ratios, strict=False)  # there may be no names
    return {
        **{f"stochastic_var_{key}": _quantile(ratios, x) for key, x in PERCENTILES.items()},
        "stochastic_var_mean": _mean(ratios),
        "unresolved": _mean([*compress(reading.unresolved, reading.counted)]),
        **dict(zip(AVERAGES, reading.scalars, strict=True)),
        "normalized_variance": _aggregate(reading.ratios, reading.counted, parameters, settings),
        "scaling_factor": factor,
        "skipped": reading.num_skipped,
        **{f"normalized_variance/{name}": ratio for name, ratio in named},
    }


def tensor_factors(
    estimator: VarianceEstimator,
    read: Callable[[], Reading],
    parameters: ParameterList,
    settings: Settings,
) -> list[float | Tensor]:
    """Return one factor for all, or that of each tensor or (flat) of its elements."""
    if isinstance(estimator, Elementwise) and settings.granularity == "element":
        places, cap = range(len(parameters.tensors)), settings.variance_cap
        return [_law(estimator.element_ratios(place, cap), settings) for place in places]
    ratios, counted, *_ = read()
    if settings.granularity == "global":
        return [_law(_aggregate(ratios, counted, parameters, settings), settings)]
    if settings.granularity == "group":
        of_group = {}
        for group in set(parameters.groups):
            inside = [c and g == group for c, g in zip(counted, parameters.groups, strict=True)]
            of_group[group] = _aggregate(ratios, inside, parameters, settings)
        ratios = [of_group[group] for group in parameters.groups]
    return [_law(ratio, settings) for ratio in ratios]


def mean_factor(estimator: VarianceEstimator, factors: Sequence[float | Tensor]) -> float:
    """Return the mean of :func:`tensor_factors` over what they are of; elements: one host sync."""
    tensors = [factor for factor in factors if isinstance(factor, Tensor)]
    if not (tensors and isinstance(estimator, Elementwise)):
        return sum(map(float, factors)) / len(factors)
    total = torch.stack([factor.sum().to(tensors[0].device) for factor in tensors]).sum()
    return estimator.fetch(total) / sum(map(Tensor.numel, tensors))


def multiply_by(grad: Tensor, factor: float | Tensor) -> None:
    """Multiply ``grad`` in place by one factor, or by one for each real element (flat)."""
    shard = local([grad])[0]
    if isinstance(factor, Tensor):
        factor = factor.to(shard.device)
        shard = torch.view_as_real(shard) if shard.is_complex() else shard
        shard.mul_(factor.view(shard.shape))
    elif factor != 1.0:
        shard.mul_(factor)


def _law(variance: Variance, settings: Settings) -> Variance:
    return scaling_factor(
        variance, settings.alpha, settings.min_scaling_factor, settings.variance_cap
    )


def _aggregate(
    ratios: list[float], counted: list[bool], parameters: ParameterList, settings: Settings
) -> float:
    """Return one variance for the tensors that count; 0 when none does."""
    ratios = [*compress(ratios, counted)]
    if settings.aggregate == "percentile":
        return _quantile(ratios, settings.percentile)
    if settings.aggregate == "max":
        return max(ratios, default=0.0)
    if settings.aggregate == "mean":
        return _mean(ratios)
    numels = [*compress((p.numel() for p in parameters.tensors), counted)]
    return sum(map(math.prod, zip(numels, ratios, strict=True))) / max(sum(numels), 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _quantile(values: list[float], level: float) -> float:
    """Return the ``level`` quantile, between values on a straight line; 0 of none."""
    ordered = sorted(values) or [0.0]
    place = level * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
