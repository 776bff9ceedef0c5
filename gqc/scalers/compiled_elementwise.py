"""The elementwise estimator with compiled passes over large gradients, two instead of five.

The first reads gradient and mean, for the norm that says whether anything is finite, and for the
squares of the move; the second reads both, moves the mean and multiplies the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gqc.gradients import local, tensor_norms
from gqc.scalers.compiled import compiled, computed, even_parts, whole_or_single
from gqc.scalers.sketch import SMALL, real_flat
from gqc.scalers.variance import Elementwise, Grads

ROW = 4096  # elements; inductor sums more float32 numbers stepwise, which takes longer


class CompiledElementwise(Elementwise):
    """:class:`~gqc.scalers.variance.Elementwise` to rounding, with the same statistics.

    Tensors of one size go together, those of more than 16384 elements compiled, and in rows; what
    is left of them goes as it does there.

    Args:
        params: the tensors.
        beta: decay of the moments.
    """

    def __init__(self, params: Sequence[Tensor], beta: float) -> None:
        super().__init__(params, beta)
        large: dict[tuple[int, torch.device], list[int]] = {}
        small: dict[tuple[int, torch.device], list[int]] = {}
        for index, mean in enumerate(self.means):
            groups = large if mean.numel() > SMALL else small
            groups.setdefault((mean.numel(), mean.device), []).append(index)
        self._large = [part for members in large.values() for part in even_parts(members)]
        self._small = list(small.values())

    def _prepare(self, grads: Grads, factor: float) -> tuple[Any, Tensor]:
        shards: Grads = [None if g is None else local([g])[0] for g in grads]
        zero = torch.zeros_like(self.num_skipped)
        norms_sq, moves_sq = [zero] * len(shards), {}
        for members in self._calls(shards):
            rows = [_rows(real_flat(shards[i])) for i in members]  # type: ignore[arg-type]
            means = [_rows(self.means[i]) for i in members]
            call = compiled(squares, rows[0].shape, len(rows), rows[0].device)
            for index, pair in zip(members, call(rows, means).to(zero).unbind(1), strict=True):
                norms_sq[index], moves_sq[index] = pair.unbind()
        rests = {i: rest for i, g in enumerate(shards) if (rest := _rest(g, i in moves_sq)).numel()}
        if rests:
            norms = tensor_norms(list(rests.values())).to(zero).square().unbind()
            for index, norm_sq in zip(rests, norms, strict=True):
                norms_sq[index] = norms_sq[index] + norm_sq
        return (shards, moves_sq), self._shards.reduce(torch.stack(norms_sq)).sum()

    def _move(self, prepared: Any, weight: Tensor, finite: Tensor, factor: float) -> Tensor:
        shards, moves_sq = prepared
        sums = [torch.zeros(2, device=weight.device)] * len(shards)
        for group in self._small:
            if members := [i for i in group if shards[i] is not None]:
                grads, means = [shards[i] for i in members], [self.means[i] for i in members]
                shares = torch.stack([weight[i] for i in members]).to(means[0].device)
                moved = _move_stacked(grads, means, shares, finite.to(means[0].device), factor)
                for index, pair in zip(members, moved.to(weight.device).unbind(1), strict=True):
                    sums[index] = pair
        for members in self._calls(shards):
            grads, means = [shards[i] for i in members], [self.means[i] for i in members]
            single = [weight[i].to(means[0].device) for i in members]
            moved = self._move_large(grads, means, single, finite, factor).to(weight.device)
            for index, (rest_sq, mean_sq) in zip(members, moved.unbind(1), strict=True):
                move_sq = torch.where(finite, moves_sq[index], 0.0)
                sums[index] = torch.stack([move_sq + rest_sq, mean_sq])
        return torch.stack(sums, dim=1)

    def _move_large(
        self,
        grads: list[Tensor],
        means: list[Tensor],
        shares: list[Tensor],
        finite: Tensor,
        factor: float,
    ) -> Tensor:
        """Tensors of one size; squares of moves outside of rows, and of all means [2, n]."""
        device = means[0].device
        flats, keep = [real_flat(g) for g in grads], -finite.to(device, torch.int32)
        rows, mean_rows = [_rows(f) for f in flats], [_rows(m) for m in means]
        ones = torch.ones(len(rows[0]), 1, device=device)
        scale = torch.full((), factor, device=device)
        call = compiled(move_and_scale, rows[0].shape, len(rows), device)
        means_sq = call(rows, mean_rows, shares, keep, scale, ones)
        sums = torch.stack([torch.zeros_like(means_sq), means_sq])
        done = rows[0].numel()
        for index, (grad, flat) in enumerate(zip(grads, flats, strict=True)):
            if done < flat.numel():
                rest, mean = flat[done:], means[index][done:]
                sums[:, index] += self._move_tensor(rest, mean, shares[index], keep, index)
                rest.mul_(factor)
            if not grad.is_contiguous():  # then the flat one is a copy
                grad.mul_(factor)
        return sums

    def _calls(self, grads: Grads) -> Iterator[list[int]]:
        """Numbers of large tensors that have a gradient, those to be done in one call together."""
        for part in self._large:
            present = [i for i in part if grads[i] is not None]
            yield from whole_or_single(part, present)


def _move_stacked(
    grads: list[Tensor], means: list[Tensor], shares: Tensor, finite: Tensor, factor: float
) -> Tensor:
    """Small tensors of one size, not compiled; squared norms of moves and means [2, n]."""
    old = torch.stack(means)
    stacked = torch.stack([real_flat(g) for g in grads])
    move = torch.where(finite, stacked - old, 0.0).float()
    new = torch.addcmul(old, move, shares.unsqueeze(1))
    torch._foreach_copy_(means, list(new.unbind()))
    if factor != 1.0:
        torch._foreach_mul_(grads, factor)
    return torch.stack([move.square().sum(1), new.square().sum(1)])


def squares(grads: list[Tensor], means: list[Tensor]) -> Tensor:
    """Squared norms of gradients, and of gradients minus means; to be compiled.

    Args:
        grads, means: one shape, [rows, elements].
    Returns: [2, number of gradients], float32 (float64 where a gradient is).
    """
    norms = [g.float().square().sum(-1).sum() for g in grads]
    moves = [(g - m).square().sum(-1).sum() for g, m in zip(grads, means, strict=True)]
    return torch.stack([torch.stack(norms), torch.stack(moves)])


def move_and_scale(
    grads: list[Tensor],
    means: list[Tensor],
    shares: list[Tensor],
    keep: Tensor,
    factor: Tensor,
    ones: Tensor,
) -> Tensor:
    r"""Move means towards gradients, :math:`m + a(g - m)`, then multiply these; to be compiled.

    Args:
        grads, means: one shape, [rows, elements]; changed in place.
        shares: :math:`a` of each mean, 0-dim.
        keep: 0-dim; where 0 the means stay, even if a gradient is NaN.
        factor: 0-dim, float32.
        ones: [rows, 1]: numbers that are the same for all rows would get loops over all elements,
            which could not be one with those that sum a row.
    Returns: squared norms of the new means [number of means], float32.
    """
    sums = []
    for grad, mean, share in zip(grads, means, shares, strict=True):
        moved = computed(torch.where(keep != 0, mean + share * ones * (grad - mean), mean))
        scaled = computed(grad * (factor * ones))
        sums.append(moved.float().square().sum(-1).sum())
        mean.copy_(moved)
        grad.copy_(scaled)
    return torch.stack(sums)


def _rows(flat: Tensor) -> Tensor:
    """All of a tensor, but for a rest if need be, in rows."""
    length = _length(flat.numel())
    return flat[: flat.numel() // length * length].view(-1, length)


@functools.cache
def _length(numel: int) -> int:
    """Of rows: a divisor between 1024 and 4096 where there is one."""
    return next((n for n in range(ROW, ROW // 4 - 1, -1) if numel % n == 0), ROW)


def _rest(grad: Tensor | None, is_large: bool) -> Tensor:
    """What is not in rows, flat."""
    if grad is None:
        return torch.empty(0)
    flat = real_flat(grad)
    return flat[_rows(flat).numel() :] if is_large else flat
