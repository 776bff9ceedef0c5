"""The variance of each tensor from the moments of all of its elements."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gqc.gradients import local, tensor_norms
from gqc.noise.estimates import ema_kappa
from gqc.scalers.moments import DebiasedEstimator, Finite, Weight
from gqc.scalers.sketch import real_flat, real_numel, zeros
from gqc.scalers.variance import Grads

CHUNK = 1 << 18  # elements; on a CPU the scratch of a chunk stays in the cache


class Elementwise(DebiasedEstimator):
    """Moments of every element: one float per parameter.

    With a factor for each element two: its spread too, for :meth:`element_ratios`.
    """

    name = "elementwise"
    has_elements = True

    def __init__(self, params: Sequence[Tensor], settings: Any) -> None:
        super().__init__(params, settings)
        per_element = settings.granularity == "element"
        self.means = [zeros(real_numel(p), p.device) for p in local(params)]
        self.spreads = [torch.zeros_like(m) for m in self.means] if per_element else []

    def element_ratios(self, index: int, variance_cap: float | None) -> Tensor:
        """V of each element of tensor ``index``, flat (a complex element is two)."""
        kappa = ema_kappa(self.count[index].abs(), self.beta).to(self.means[index].device)
        variance = self.spreads[index] / (1 - kappa).clamp_min(torch.finfo(kappa.dtype).tiny)
        signal = (self.means[index].square() - kappa * variance).clamp_min(0)
        ratio = (variance / signal).nan_to_num(0.0)  # 0 / 0: no noise at all
        return ratio.clamp(max=1 / kappa if variance_cap is None else variance_cap)

    def _prepare(self, grads: Grads, factor: float) -> tuple[Any, Tensor]:
        shards = local(grads)
        there = [m[:0] if g is None else g for g, m in zip(shards, self.means, strict=True)]
        squares = tensor_norms(there).to(self.count).square()
        return shards, self._shards.reduce(squares).sum()

    def _move(self, prepared: Any, weight: Weight, finite: Finite, factor: float) -> Tensor:
        # An integer mask makes the move exactly zero where NaN * 0 would not, and costs less than
        # torch.where or masked_fill_.
        keep = -finite.to(torch.int32) if isinstance(finite, Tensor) else None
        sums = []
        for index, (grad, mean) in enumerate(zip(prepared, self.means, strict=True)):
            if grad is None or not grad.numel():
                sums.append(zeros(2, self._device))
                continue
            mask = None if keep is None else keep.to(mean.device)
            share = weight[index].to(mean.device) if isinstance(weight, Tensor) else weight
            totals = self._move_tensor(real_flat(grad), mean, share, mask, index)
            sums.append(totals.to(self._device))
            if factor != 1.0:
                grad.mul_(factor)
        return torch.stack(sums, dim=1)

    def _move_tensor(
        self, flat: Tensor, mean: Tensor, share: Weight, keep: Tensor | None, index: int
    ) -> Tensor:
        """Move one mean; the squared norms of move and mean [2]."""
        chunk = CHUNK if mean.device.type == "cpu" else mean.numel()
        scratch = torch.empty_like(mean[:chunk])
        spreads = self.spreads[index].split(chunk) if self.spreads else None
        sums = []
        for i, (g, m) in enumerate(zip(flat.split(chunk), mean.split(chunk), strict=True)):
            move = torch.sub(g, m, out=scratch[: m.numel()])
            if keep is not None:
                move.view(torch.int32).bitwise_and_(keep)
            sums.append(torch.dot(move, move))
            if spreads is not None:
                spreads[i].add_(move.square().mul_(share)).mul_(1 - share)
            m.add_(move.mul_(share))
            sums.append(torch.dot(m, m))
        totals = torch.stack(sums)
        return totals if len(sums) == 2 else totals.view(-1, 2).sum(0)

    def _lists(self) -> dict[str, list[Tensor]]:
        return {"means": self.means} | ({"spreads": self.spreads} if self.spreads else {})
