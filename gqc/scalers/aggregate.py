r"""Combine the variances of tensors into one, and turn a variance into a factor."""

from __future__ import annotations

import functools
from ctypes import c_float

import torch
from torch import Tensor

AGGREGATES = ("percentile", "mean", "numel_weighted", "max")
PERCENTILES = (0.1, 0.5, 0.9)


def scaling_factor(
    variance: Tensor, alpha: float, smallest: float, variance_cap: float | None
) -> Tensor:
    r"""Return the factor: :math:`\mathrm{clip}(1/(1+\alpha\min(V, V_\max)), f_\min, 1)`.

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
    variance: Tensor, counted: Tensor | None, numel: Tensor | None, how: str, percentile: float
) -> Tensor:
    """Return one variance for several tensors.

    Args:
        variance: V of each tensor [T].
        counted: which tensors count [T]; those without a gradient so far don't.  None: all.
        numel: elements of each tensor [T], for ``"numel_weighted"``.
        how: ``"percentile"`` over tensors (linear between them), ``"mean"`` over tensors,
            ``"numel_weighted"`` mean, or ``"max"``.
        percentile: in [0, 1], for ``"percentile"``.
    Returns: 0-dim; 0 when no tensor counts.
    """
    if how == "percentile":
        return _quantile(variance, counted, percentile)
    counted = torch.ones_like(variance, dtype=torch.bool) if counted is None else counted
    if how == "max":
        return torch.where(counted, variance, 0.0).max()
    weight = counted if numel is None else counted * numel
    return (weight * variance).sum() / weight.sum().clamp(min=1)


def summary(variance: Tensor, unresolved: Tensor, counted: Tensor | None) -> Tensor:
    """Return percentiles 10, 50, 90 and mean of V, and the share of unresolved tensors [5]."""
    quantiles = [_quantile(variance, counted, level) for level in PERCENTILES]
    mean = aggregate(variance, counted, None, "mean", 0.0)
    share = aggregate(unresolved.float(), counted, None, "mean", 0.0)
    return torch.stack([*quantiles, mean, share])


def _quantile(variance: Tensor, counted: Tensor | None, level: float) -> Tensor:
    """Return what ``torch.nanquantile`` does, which is slow on few numbers."""
    last = len(variance) - 1
    if counted is None:  # the place is known without the device
        low, part = _place(last, level)
        ordered = variance.sort().values
        return torch.lerp(ordered[low], ordered[min(low + 1, last)], part)
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
