r"""Noise from differences of successive gradients, for a mean that moves.

.. math:: \hat\sigma^2 = \tfrac12\,\overline{|g_t - g_{t-1}|^2}, \qquad
    \hat\mu^2 = |m|^2 - \kappa\hat\sigma^2

with the same average m as :class:`~gqc.scalers.variance.Sketch`, on the same hashes.  A mean that
moves is no noise to it, since it moves little from one gradient to the next.  Noise that moves as
slowly is none either: which of the two estimators is right depends on the stream, see the table in
:mod:`gqc.scalers.variance` (and :class:`gqc.diagnostics.DrawCorrelation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gqc.noise.estimates import ema_weight
from gqc.scalers.variance import Sketch


class Differences(Sketch):
    """Half the mean square of differences; half as much memory again as the sketch."""

    name = "differences"

    def __init__(self, params: Sequence[Tensor], settings: Any) -> None:
        super().__init__(params, settings)
        self._last = torch.zeros_like(self._mean)

    def _move(self, prepared: Tensor, weight: Tensor, finite: Tensor, factor: float) -> Tensor:
        has_last = self._of_values((weight > 0) & (self.count > 0))
        change = torch.where(has_last & finite, prepared - self._last, 0.0)
        self._last = torch.where(self._of_values(weight > 0) & finite, prepared, self._last)
        sums = super()._move(prepared, weight, finite, factor)
        torch.mul(change, change, out=self._pair[0])
        return torch.stack([self._sums()[0] / 2, sums[1]])

    def _average(self, squares: Tensor, weight: Tensor) -> Tensor:
        share = ema_weight(self.count, self.beta) * (weight > 0)  # one difference less than updates
        return self.spread + share * (squares - self.spread)

    def _moments(self, kappa: Tensor) -> tuple[Tensor, Tensor]:
        return self.spread, self.mean_sq - kappa * self.spread

    def _lists(self) -> dict[str, list[Tensor]]:
        return {**super()._lists(), "last": [self._last[p] for p in self._sketch.places]}
