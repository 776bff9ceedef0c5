r"""Random sign projections of gradients: a few numbers that keep the squared norm in expectation.

A tensor is cut into contiguous buckets; the sketch value of bucket b is
:math:`p_b = \sum_{j\in b} s_j g_j` with random signs :math:`s_j = \pm 1`.  Since
:math:`E\,s_i s_j = 0` for different elements, :math:`E\sum_b p_b^2 = |g|^2`, and as p is linear in
g, moments of p over time estimate those of g without bias, with a relative error of about
:math:`\sqrt{2/k}` from k buckets.

Signs come from shared tiles: bucket b uses tile ``b mod 64``.  No sign repeats inside a bucket, and
64 buckets have 64 independent rows of signs: with a single row, all buckets of a constant tensor
would agree, and the error would be that of k = 1.

Source: the tug-of-war sketch of Alon, Matias and Szegedy 1996, in blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE = 8191  # prime, so that no power-of-two structure of a tensor falls in step with a tile
ROWS = 64  # buckets done in one go: 2 MB of gradient and 2 MB of signs


def real_numel(tensor: Tensor) -> int:
    """Number of real elements."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def real_flat(tensor: Tensor) -> Tensor:
    """The elements in one row, a complex one as two real ones; a view where the layout allows."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


class SignSketch:
    """Sketch a list of tensors; the same signs for the same seed, on every device and rank.

    Args:
        numels: real elements of each tensor (a complex one is two).
        devices: where each tensor is.
        size: k, least number of buckets of a tensor (one with fewer elements: one bucket each).
        seed: of the signs.
    Attributes:
        sizes: number of buckets of each tensor: k or a few more, and one for every 8191 elements
            in a large tensor.
    """

    def __init__(
        self, numels: Sequence[int], devices: Sequence[torch.device], size: int = 64, seed: int = 0
    ) -> None:
        self._arguments = (list(numels), list(devices), size, seed)
        self._devices = list(devices)
        self._plans = []
        self.sizes = []
        buffers = {d: torch.empty(ROWS * TILE, device=d) for d in dict.fromkeys(devices)}
        for numel, device in zip(numels, devices, strict=True):
            length = max(1, min(TILE, numel // size))
            tiles = _tiles(max(ROWS, size), seed, device)
            self._plans.append(_plan(numel, length, tiles, buffers[device]))
            self.sizes.append(-(-numel // length))

    def __reduce__(self) -> tuple[Any, ...]:
        return SignSketch, self._arguments  # signs and scratch are made again, not copied

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Sketch values [sum of sizes], float32, on the first device; None sketches to zeros."""
        out = torch.zeros(sum(self.sizes), device=self._devices[0])
        parts = out.split(self.sizes)
        for tensor, device, plan, part in zip(
            tensors, self._devices, self._plans, parts, strict=True
        ):
            if tensor is None:
                continue
            if device == out.device:
                _project(tensor, plan, part)
            else:
                elsewhere = torch.empty_like(part, device=device)
                _project(tensor, plan, elsewhere)
                part.copy_(elsewhere)
        return out


class _Plan(NamedTuple):
    """How one tensor is sketched; the same at every step, so the views are made once."""

    elements: list[int]  # of each piece
    buckets: list[int]  # of each piece
    tiles: list[Tensor]  # signs of each piece [buckets, elements per bucket]
    buffers: list[Tensor]  # scratch of the same shape


def _plan(numel: int, length: int, tiles: Tensor, buffer: Tensor) -> _Plan:
    """Pieces of whole buckets with consecutive tiles, then the last bucket if it is shorter."""
    plan = _Plan([], [], [], [])
    whole, rest = divmod(numel, length)
    bucket = 0
    while bucket * length < numel:
        row = bucket % len(tiles)
        count = min(ROWS, len(tiles) - row, whole - bucket)
        shape = (count, length) if count else (1, rest)
        plan.elements.append(shape[0] * shape[1])
        plan.buckets.append(shape[0])
        plan.tiles.append(tiles[row : row + shape[0], : shape[1]])
        plan.buffers.append(buffer[: shape[0] * shape[1]].view(shape))
        bucket += shape[0]
    return plan


def _project(tensor: Tensor, plan: _Plan, out: Tensor) -> None:
    pieces = real_flat(tensor).split(plan.elements)
    sums = out.split(plan.buckets)
    for piece, total, tile, buffer in zip(pieces, sums, plan.tiles, plan.buffers, strict=True):
        torch.mul(piece.view(tile.shape), tile, out=buffer)  # casts 16-bit gradients to float32
        torch.sum(buffer, 1, out=total)


@functools.lru_cache(maxsize=32)
def _tiles(count: int, seed: int, device: torch.device) -> Tensor:
    """Signs [count, 8191], float32: shared by all sketches of a device."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (count, TILE), generator=generator, dtype=torch.int8)
    return (bits * 2 - 1).to(device, torch.float32)
