r"""From the variances of single tensors to one factor: aggregation, and the scaling law."""

from __future__ import annotations

import torch
from torch import Tensor

AGGREGATES = ("percentile", "mean", "numel_weighted", "max")
PERCENTILES = (0.1, 0.5, 0.9)


def scaling_factor(
    variance: Tensor, alpha: float, smallest: float, variance_cap: float | None
) -> Tensor:
    r"""Factor on the gradient: :math:`\mathrm{clip}(1/(1+\alpha\min(V, V_\max)), f_\min, 1)`.

    Args:
        variance: :math:`V \ge 0`, any shape.
        alpha: strength, >= 0.
        smallest: :math:`f_\min` in [0, 1].
        variance_cap: :math:`V_\max`; None for no cap.
    Returns: the shape of ``variance``.
    """
    bounded = variance if variance_cap is None else variance.clamp(max=variance_cap)
    return (1 / (1 + alpha * bounded)).clamp(smallest, 1)


def aggregate(
    variance: Tensor, counted: Tensor, numel: Tensor, how: str, percentile: float
) -> Tensor:
    """One variance of several tensors.

    Args:
        variance: V of each tensor [T].
        counted: which tensors count [T]; those without a gradient so far don't.
        numel: elements of each tensor [T].
        how: ``"percentile"`` over tensors (linear between them), ``"mean"`` over tensors,
            ``"numel_weighted"`` mean, or ``"max"``.
        percentile: in [0, 1], for ``"percentile"``.
    Returns: 0-dim; 0 when no tensor counts.
    """
    if how == "percentile":
        return _quantiles(variance, counted, [percentile])[0]
    if how == "max":
        return torch.where(counted, variance, 0.0).max()
    weight = counted * (numel if how == "numel_weighted" else torch.ones_like(variance))
    return (weight * variance).sum() / weight.sum().clamp(min=1)


def summary(variance: Tensor, unresolved: Tensor, counted: Tensor) -> Tensor:
    """Percentiles 10, 50, 90 and mean of V, and the share of unresolved tensors [5]."""
    number = counted.sum().clamp(min=1)
    mean = torch.where(counted, variance, 0.0).sum() / number
    share = (unresolved & counted).sum() / number
    quantiles = _quantiles(variance, counted, list(PERCENTILES))
    return torch.cat([quantiles, torch.stack([mean, share])])


def _quantiles(variance: Tensor, counted: Tensor, levels: list[float]) -> Tensor:
    masked = torch.where(counted, variance, torch.nan)
    quantiles = torch.nanquantile(masked, torch.tensor(levels, device=variance.device))
    return quantiles.nan_to_num(0.0)
