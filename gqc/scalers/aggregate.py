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
    variance: Tensor, counted: Tensor, numel: Tensor | None, how: str, percentile: float
) -> Tensor:
    """One variance of several tensors.

    Args:
        variance: V of each tensor [T].
        counted: which tensors count [T]; those without a gradient so far don't.
        numel: elements of each tensor [T], for ``"numel_weighted"``.
        how: ``"percentile"`` over tensors (linear between them), ``"mean"`` over tensors,
            ``"numel_weighted"`` mean, or ``"max"``.
        percentile: in [0, 1], for ``"percentile"``.
    Returns: 0-dim; 0 when no tensor counts.
    """
    if how == "percentile":
        return _quantiles(variance, counted, percentile)
    if how == "max":
        return torch.where(counted, variance, 0.0).max()
    weight = counted if numel is None else counted * numel
    return (weight * variance).sum() / weight.sum().clamp(min=1)


def summary(variance: Tensor, unresolved: Tensor, counted: Tensor) -> Tensor:
    """Percentiles 10, 50, 90 and mean of V, and the share of unresolved tensors [5]."""
    number = counted.sum().clamp(min=1)
    mean = torch.where(counted, variance, 0.0).sum() / number
    share = (unresolved & counted).sum() / number
    # Filled on the device: a list that is copied there makes the host wait.
    levels = torch.cat([torch.full_like(variance[:1], level) for level in PERCENTILES])
    quantiles = _quantiles(variance, counted, levels)
    return torch.cat([quantiles, torch.stack([mean, share])])


def _quantiles(variance: Tensor, counted: Tensor, levels: Tensor | float) -> Tensor:
    """Linear between order statistics, as ``torch.nanquantile``, which is slow on few numbers."""
    ordered = torch.where(counted, variance, -1.0).sort().values  # what does not count comes first
    last = len(variance) - 1
    place = (last - (1 - levels) * (counted.sum() - 1)).clamp(0, last)
    low = place.long()
    pair = ordered[torch.stack([low, (low + 1).clamp(max=last)])]
    return torch.lerp(pair[0], pair[1], place - low).clamp(min=0)
