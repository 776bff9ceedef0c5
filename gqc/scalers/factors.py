"""Turn an estimator's variances into factors on the gradient, and into numbers on the host."""

from __future__ import annotations

import torch
from torch import Tensor

from gqc.gradients import local
from gqc.scalers.aggregate import aggregate, scaling_factor, summary
from gqc.scalers.elementwise import Elementwise
from gqc.scalers.parameters import ParameterList
from gqc.scalers.settings import Settings
from gqc.scalers.variance import VarianceEstimator

NUMBERS = (
    *("variance", "factor", "skipped"),
    *("stochastic_var_p10", "stochastic_var_p50", "stochastic_var_p90", "stochastic_var_mean"),
    *("unresolved", "grad_mean_ema_spatial", "grad_var_ema_spatial"),
    *("grad_norm_ema", "grad_max_ema"),
)


def readings(
    estimator: VarianceEstimator | None, parameters: ParameterList, settings: Settings
) -> dict[str, float]:
    """Return :data:`NUMBERS` and ``"of NAME"``, the V of each named parameter; one host sync."""
    names = [*NUMBERS, *(f"of {name}" for name in parameters.names)]
    if estimator is None:
        return {**dict.fromkeys(names, 0.0), "factor": 1.0}
    ratios, unresolved, counted = estimator.ratios(settings.variance_cap)
    variance = _aggregate(ratios, counted, parameters, settings)
    factors = tensor_factors(estimator, parameters, settings)
    factor = mean_factor(estimator, parameters, settings, factors)
    packed = torch.cat(
        [
            torch.stack([variance, factor, estimator.skipped()]),
            summary(ratios, unresolved, counted),
            estimator.averages.corrected(),
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
        single = (
            estimator.element_ratios(index, settings.variance_cap)
            for index in range(len(parameters.tensors))
        )
        return [_law(ratios, settings) for ratios in single]
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
    device = estimator.averages.raw.device
    total = torch.stack([f.sum().to(device) for f in factors]).sum()
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
    numel = None
    if settings.aggregate == "numel_weighted":
        numel = parameters.numels(ratios.device)
    return aggregate(ratios, counted, numel, settings.aggregate, settings.percentile)
