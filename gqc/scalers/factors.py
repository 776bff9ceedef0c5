"""Aggregate an estimator's variances into factors on the gradient, and numbers on the host."""

from __future__ import annotations

import functools
from ctypes import c_float

import torch
from torch import Tensor

from gqc.gradients import constant, local
from gqc.scalers.elementwise import Elementwise
from gqc.scalers.parameters import ParameterList
from gqc.scalers.settings import Settings
from gqc.scalers.variance import VarianceEstimator

NUMBERS = (  # the published names, without "vgs/"
    *("stochastic_var_p10", "stochastic_var_p50", "stochastic_var_p90", "stochastic_var_mean"),
    *("unresolved", "grad_mean_ema_spatial", "grad_var_ema_spatial"),
    *("grad_norm_ema", "grad_max_ema", "normalized_variance", "scaling_factor", "skipped"),
)
PERCENTILES = (0.1, 0.5, 0.9)


def scaling_factor(
    variance: Tensor, alpha: float, smallest: float, variance_cap: float | None
) -> Tensor:
    r"""Return the factor of :mod:`gqc.scalers.vgs`, in the shape of ``variance``, with its letters.

    :math:`\mathrm{clip}(1/(1+\alpha\min(V, V_\max)), f_\min, 1)`; no cap where that is None.
    """
    bounded = variance if variance_cap is None else variance.clamp_max(variance_cap)
    scaled = constant(alpha, bounded) * bounded + constant(1, bounded)
    return scaled.reciprocal().clamp(smallest, 1)


def readings(
    estimator: VarianceEstimator | None, parameters: ParameterList, settings: Settings
) -> dict[str, float]:
    """Return :data:`NUMBERS` and ``"normalized_variance/NAME"`` of parameters; one host sync."""
    names = [*NUMBERS, *(f"normalized_variance/{name}" for name in parameters.names)]
    if estimator is None:
        return {**dict.fromkeys(names, 0.0), "scaling_factor": 1.0}
    ratios, unresolved, counted = estimator.ratios(settings.variance_cap)
    variance = _aggregate(ratios, counted, parameters, settings)
    factors = tensor_factors(estimator, parameters, settings)
    factor = mean_factor(estimator, parameters, settings, factors)
    packed = torch.cat(
        [
            *(_quantile(ratios, counted, level).view(1) for level in PERCENTILES),
            torch.stack([_mean(ratios, counted), _mean(unresolved, counted)]),
            estimator.averages.corrected(),
            torch.stack([variance, factor, estimator.num_skipped]),
            ratios if parameters.names else ratios[:0],
        ]
    )
    return dict(zip(names, packed.tolist(), strict=True))


def tensor_factors(
    estimator: VarianceEstimator, parameters: ParameterList, settings: Settings
) -> list[Tensor] | None:
    """Return the factor of each tensor (0-dim) or of its elements (flat); None if all share one."""
    if settings.granularity == "global":
        return None
    if isinstance(estimator, Elementwise) and settings.granularity == "element":
        places, cap = range(len(parameters.tensors)), settings.variance_cap
        return [_law(estimator.element_ratios(place, cap), settings) for place in places]
    ratios, _, counted = estimator.ratios(settings.variance_cap)
    if settings.granularity == "group":
        of_group = {}
        for group in set(parameters.groups):
            inside = parameters.members(group, ratios.device)
            inside = inside if counted is None else counted & inside
            of_group[group] = _aggregate(ratios, inside, parameters, settings)
        ratios = torch.stack([of_group[group] for group in parameters.groups])
    return list(_law(ratios, settings).unbind())


def mean_factor(
    estimator: VarianceEstimator,
    parameters: ParameterList,
    settings: Settings,
    factors: list[Tensor] | None,
) -> Tensor:
    """Return the one factor, 0-dim, or the mean of :func:`tensor_factors` over what they are of."""
    if factors is None:
        ratios, _, counted = estimator.ratios(settings.variance_cap)
        return _law(_aggregate(ratios, counted, parameters, settings), settings)
    total = torch.stack([f.sum().to(estimator.averages.raw.device) for f in factors]).sum()
    return total / sum(f.numel() for f in factors)


def multiply_by(grad: Tensor, factor: float | Tensor) -> None:
    """Multiply ``grad`` in place by one factor, or by one for each real element (flat)."""
    shard = local([grad])[0]
    if isinstance(factor, Tensor):
        factor = factor.to(shard.device)
        if factor.dim():
            shard = torch.view_as_real(shard) if shard.is_complex() else shard
            factor = factor.view(shard.shape)
    elif factor == 1.0:
        return
    shard.mul_(factor)


def _law(variance: Tensor, settings: Settings) -> Tensor:
    return scaling_factor(
        variance, settings.alpha, settings.min_scaling_factor, settings.variance_cap
    )


def _aggregate(
    ratios: Tensor, counted: Tensor | None, parameters: ParameterList, settings: Settings
) -> Tensor:
    """Return one variance for the tensors that count (None: all), 0-dim; 0 when none does."""
    if settings.aggregate == "percentile":
        return _quantile(ratios, counted, settings.percentile)
    if settings.aggregate == "max":
        return (ratios if counted is None else torch.where(counted, ratios, 0.0)).max()
    is_weighted = settings.aggregate == "numel_weighted"
    return _mean(ratios, counted, parameters.numels(ratios.device) if is_weighted else None)


def _mean(values: Tensor, counted: Tensor | None, numel: Tensor | None = None) -> Tensor:
    weight = torch.ones_like(values) if counted is None else counted.float()
    weight = weight if numel is None else weight * numel
    return (weight * values).sum() / weight.sum().clamp(min=1)


def _quantile(variance: Tensor, counted: Tensor | None, level: float) -> Tensor:
    """Return what ``torch.nanquantile`` does, which is slow on few numbers."""
    last = len(variance) - 1
    if counted is None:  # the place is known without the device
        low, part = _place(last, level)
        above = variance.topk(last - low + 1).values  # from the largest on
        return torch.lerp(above[-1], above[-2] if low < last else above[-1], part)
    ordered = torch.where(counted, variance, -1.0).sort().values  # what does not count comes first
    place = (last - (1 - level) * (counted.sum() - 1)).clamp(0, last)
    low_place = place.long()
    pair = ordered[torch.stack([low_place, (low_place + 1).clamp(max=last)])]
    return torch.lerp(pair[0], pair[1], place - low_place).clamp(min=0)


@functools.lru_cache(maxsize=256)
def _place(last: int, level: float) -> tuple[int, float]:
    """Index below a quantile of ``last + 1`` numbers and the rest, in float32 as on the device."""
    share = c_float(c_float(1 - level).value * last).value
    place = c_float(last - share).value
    return int(place), place - int(place)
