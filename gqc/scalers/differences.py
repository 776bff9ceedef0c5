r"""Noise from differences of successive gradients, for a mean that moves.

.. math:: \hat\sigma^2 = \tfrac12\,\overline{|g_t - g_{t-1}|^2}, \qquad
    \hat\mu^2 = |m|^2 - \kappa\hat\sigma^2

with the same average m as :class:`~gqc.scalers.sketch.Sketch`, on the same hashes.  A mean that
moves is no noise to it, since it moves little from one gradient to the next.  Noise that moves as
slowly is none either: which of the two estimators is right depends on the stream, see the table in
:mod:`gqc.scalers.variance` (and :class:`gqc.diagnostics.DrawCorrelation`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gqc.scalers.moments import Finite, Floats, Weight
from gqc.scalers.sketch import Sketch


class Differences(Sketch):
    """Half the mean square of differences; half as much memory again as the sketch."""

    name = "differences"

    def __init__(self, params: Sequence[Tensor], settings: Any) -> None:
        super().__init__(params, settings)
        self._last = torch.zeros_like(self._mean)

    def _move(self, prepared: Tensor, weight: Weight, finite: Finite, factor: float) -> Tensor:
        moved = weight > 0 if isinstance(weight, Tensor) else self.count >= 0
        has_last = self._of_values(moved & (self.count > 0))
        change = torch.where(has_last & finite, prepared - self._last, 0.0)
        self._last = torch.where(self._of_values(moved) & finite, prepared, self._last)
        sums = super()._move(prepared, weight, finite, factor)
        torch.mul(change, change, out=self._pair[0])
        return torch.stack([self._sums()[0] / 2, sums[1]])

    def _share(self, count: float, before: float) -> float:  # one difference less than updates
        return super()._share(before, 0) if count > before else 0.0

    def _averaged(self, shares: Floats, spread: Floats, squares: Floats) -> Floats:
        triples = zip(shares, spread, squares, strict=True)
        return [old + a * (square - old) for a, old, square in triples]

    def _kappa_and_scale(self, count: int) -> tuple[float, float]:
        return super()._kappa_and_scale(count)[0], 1.0

    def _lists(self) -> dict[str, list[Tensor]]:
        return {**super()._lists(), "last": [self._last[p] for p in self._sketch.places]}
