r"""Random sign projections of gradients: a few numbers that keep the squared norm in expectation.

A tensor is cut into contiguous buckets; the sketch value of bucket b is
:math:`p_b = \sum_{j\in b} s_j g_j` with random signs :math:`s_j = \pm 1`.  Since
:math:`E\,s_i s_j = 0` for different elements, :math:`E\sum_b p_b^2 = |g|^2`, and as p is linear in
g, moments of p over time estimate those of g without bias, with a relative error of about
:math:`\sqrt{2/k}` from k buckets.

A tensor is a sequence of rounds of k = 64 buckets, each of at most 8191 elements, and a shorter
bucket for what is left over; bucket b uses row ``b mod k`` of the signs, which all tensors share.
No sign repeats inside a bucket, and the k rows are independent: with a single one, all buckets of a
constant tensor would agree, and the error would be that of k = 1.

Source: the tug-of-war sketch of Alon, Matias and Szegedy 1996, in blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE = 8191  # prime, so that no power-of-two structure of a tensor falls in step with a row
ROUNDS = 2  # done in one go, with scratch of 4 MB for k = 64
SMALL = 1 << 14  # elements; up to here tensors of one size are done together


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
        size: k, buckets of a tensor at least (one with fewer elements: one bucket each).
        seed: of the signs.
    Attributes:
        sizes: number of buckets of each tensor: k for each 8191 k elements or a part of them, and
            one for the rest.
    """

    def __init__(
        self,
        numels: Sequence[int],
        devices: Sequence[torch.device],
        size: int = 64,
        seed: int = 0,
    ) -> None:
        self._arguments = (list(numels), list(devices), size, seed)
        self._devices = list(dict.fromkeys(devices))
        scratch = {d: torch.empty(ROUNDS * size * TILE, device=d) for d in self._devices}
        shapes = [_shapes(numel, size) for numel in numels]
        self.sizes = [sum(rounds * rows for rounds, rows, _ in shape) for shape in shapes]
        self._values = [torch.zeros(s, device=d) for s, d in zip(self.sizes, devices, strict=True)]
        if len(self._devices) == 1:  # then the values are one tensor, and each one's part a view
            self._all = torch.zeros(sum(self.sizes), device=self._devices[0])
            self._values = list(self._all.split(self.sizes))
        groups: dict[Any, list[int]] = {}
        for index, key in enumerate(zip(numels, devices, strict=True)):
            groups.setdefault(key if 0 < key[0] <= SMALL else index, []).append(index)
        self._groups = [
            (members, _plan(shapes[members[0]], self._values[members[0]], scratch, size, seed))
            for members in groups.values()
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        return SignSketch, self._arguments  # signs and scratch are made again, not copied

    def __call__(self, tensors: Sequence[Tensor | None], factor: float = 1.0) -> Tensor:
        """Sketch the tensors, then multiply each by ``factor`` in place.

        Doing that here, while the cache still holds the tensor, saves half of its cost.

        Returns: values [sum of sizes], float32, on the first device; None sketches to zeros.  The
            next call overwrites them.
        """
        for members, plan in self._groups:
            present = [t for i in members if (t := tensors[i]) is not None]
            if len(present) < len(members):
                torch._foreach_zero_([self._values[i] for i in members])
            if len(members) == 1 and present:
                _project(real_flat(present[0]), plan)
            elif present:
                rows = torch.stack([real_flat(t) for t in present]).float()
                values = [self._values[i] for i in members if tensors[i] is not None]
                torch._foreach_copy_(values, list(_project_rows(rows, plan).unbind()))
            if factor != 1.0 and present:
                torch._foreach_mul_(present, factor)
        if len(self._devices) == 1:
            return self._all
        return torch.cat([v.to(self._devices[0]) for v in self._values])


class _Piece(NamedTuple):
    """A run of whole rounds; the same at every step, so the views are made once."""

    signs: Tensor  # [buckets of a round, elements of a bucket]
    scratch: Tensor  # [rounds, buckets, elements]
    values: Tensor  # [rounds, buckets]: where the sums of a tensor that is alone go


def _shapes(numel: int, size: int) -> list[tuple[int, int, int]]:
    """Cut a tensor into pieces of (rounds, buckets of a round, elements of a bucket)."""
    if numel <= size:
        return [(1, numel, 1)] if numel else []
    fewest = -(-numel // (size * TILE))
    rounds = next((r for r in range(fewest, 2 * fewest) if numel % (size * r) == 0), fewest)
    length = numel // (size * rounds)
    rest = numel - rounds * size * length
    if rest > TILE:
        return [(rounds, size, length), *_shapes(rest, size)]
    return [(rounds, size, length)] + ([(1, 1, rest)] if rest else [])


def _plan(
    shapes: list[tuple[int, int, int]],
    values: Tensor,
    scratch: dict[torch.device, Tensor],
    size: int,
    seed: int,
) -> list[_Piece]:
    plan, done = [], 0
    signs, room = _signs(size, seed, values.device), scratch[values.device]
    for rounds, rows, length in shapes:
        for first in range(0, rounds, ROUNDS):
            shape = (min(ROUNDS, rounds - first), rows, length)
            part = values[done : done + shape[0] * rows].view(shape[:2])
            buffer = room[: shape[0] * rows * length].view(shape)
            plan.append(_Piece(signs[:rows, :length], buffer, part))
            done += part.numel()
    return plan


def _project(flat: Tensor, plan: list[_Piece]) -> None:
    """One tensor, in scratch that stays in the cache."""
    done = 0
    for signs, scratch, values in plan:
        piece = flat[done : done + scratch.numel()] if len(plan) > 1 else flat
        torch.mul(piece.view(scratch.shape), signs, out=scratch)  # casts 16-bit ones to float32
        torch.sum(scratch, -1, out=values)
        done += scratch.numel()


def _project_rows(rows: Tensor, plan: list[_Piece]) -> Tensor:
    """Small tensors of one size together: [n, elements] to [n, buckets]."""
    pieces = rows.split([p.scratch.numel() for p in plan], dim=1)
    sums = [
        (piece.view(len(rows), *p.scratch.shape) * p.signs).sum(-1).flatten(1)
        for piece, p in zip(pieces, plan, strict=True)
    ]
    return torch.cat(sums, dim=1)


@functools.lru_cache(maxsize=32)
def _signs(size: int, seed: int, device: torch.device) -> Tensor:
    """Rows of signs [size, 8191]: shared by all sketches of a device."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (size, TILE), generator=generator, dtype=torch.int8)
    return (bits * 2 - 1).to(device, torch.float32)
