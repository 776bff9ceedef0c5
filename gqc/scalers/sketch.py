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
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gqc.scalers.compiled import LEAST, compiled, computed, even_parts, whole_or_single

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
        compile: sketch and multiply whole rounds with :func:`project_and_scale`, compiled: one pass
            over a large tensor.  Small tensors and remainders stay as they are.
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
        compile: bool = False,
    ) -> None:
        self._arguments = (list(numels), list(devices), size, seed, compile)
        self._devices = list(dict.fromkeys(devices))
        scratch = {d: torch.empty(ROUNDS * size * TILE, device=d) for d in self._devices}
        shapes = [_shapes(numel, size) for numel in numels]
        self.sizes = [sum(rounds * rows for rounds, rows, _ in shape) for shape in shapes]
        self._values = [torch.zeros(s, device=d) for s, d in zip(self.sizes, devices, strict=True)]
        if len(self._devices) == 1:  # then the values are one tensor, and each one's part a view
            self._all = torch.zeros(sum(self.sizes), device=self._devices[0])
            self._values = list(self._all.split(self.sizes))
        whole = {i: shapes[i][0] for i, n in enumerate(numels) if compile and n > SMALL}
        self._batches = _Batches(whole, self._values, size, seed)
        groups: dict[Any, list[int]] = {}
        for index, key in enumerate(zip(numels, devices, strict=True)):
            groups.setdefault(key if 0 < key[0] <= SMALL else index, []).append(index)
        self._groups = [
            (members, _plan(shapes[members[0]], self._values[members[0]], scratch, size, seed))
            for members in groups.values()
            if members[0] not in whole
        ]
        self._rests = [
            (
                index,
                _plan(shapes[index][1:], self._values[index][rounds * rows :], scratch, size, seed),
            )
            for index, (rounds, rows, _) in whole.items()
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
        if self._rests:
            self._compiled(tensors, factor if factor >= LEAST else 1.0)
            if factor < LEAST:
                torch._foreach_mul_(
                    [t for i, _ in self._rests if (t := tensors[i]) is not None], factor
                )
        if len(self._devices) == 1:
            return self._all
        return torch.cat([v.to(self._devices[0]) for v in self._values])

    def _compiled(self, tensors: Sequence[Tensor | None], factor: float) -> None:
        """The large tensors: whole rounds first, then what is left of each."""
        flats = {i: real_flat(t) for i, _ in self._rests if (t := tensors[i]) is not None}
        self._batches(flats, factor)
        for index, plan in self._rests:
            tensor = tensors[index]
            if tensor is None:
                self._values[index].zero_()
                continue
            if plan:
                rest = flats[index][-sum(p.scratch.numel() for p in plan) :]
                _project(rest, plan)
                rest.mul_(factor)
            if not tensor.is_contiguous():  # then the flat one is a copy
                tensor.mul_(factor)


class _Batches:
    """The rounds of large tensors, those of one shape in one compiled call.

    Args:
        shapes: tensor number to the shape of its whole rounds.
        values: where the values of each tensor go.
        size, seed: of the signs.
    """

    def __init__(
        self, shapes: dict[int, tuple[int, int, int]], values: list[Tensor], size: int, seed: int
    ) -> None:
        groups: dict[Any, list[int]] = {}
        for index, shape in shapes.items():
            groups.setdefault((values[index].device, shape), []).append(index)
        self._calls = []
        for (device, shape), members in groups.items():
            signs = _signs(size, seed, device, torch.int8)[: shape[1], : shape[2]]
            for part in even_parts(members):
                sums = [values[i][: shape[0] * shape[1]].view(shape[:2]) for i in part]
                self._calls.append((shape, signs, part, sums))

    def __call__(self, flats: Mapping[int, Tensor], factor: float) -> None:
        for shape, signs, members, values in self._calls:
            column = torch.full((shape[1], 1), factor, device=signs.device)
            present = [
                (flats[index][: math.prod(shape)].view(shape), value)
                for index, value in zip(members, values, strict=True)
                if index in flats
            ]
            for part in whole_or_single(members, present):
                call = compiled(project_and_scale, shape, len(part), signs.device)
                sums = call([rounds for rounds, _ in part], signs, column)
                torch._foreach_copy_([value for _, value in part], sums)


def project_and_scale(rounds: list[Tensor], signs: Tensor, factor: Tensor) -> list[Tensor]:
    """Bucket sums of tensors, which are then multiplied by a factor in place; to be compiled.

    In one loop: the sums are those of the product, divided by the factor, since a loop that also
    sums what it overwrites is more than inductor makes.  That rounds each element once more.  The
    factor has the dimension of buckets for the same reason: without it, the product would be a loop
    over all elements.  Float64 because inductor sums more than 4096 float32 numbers stepwise, for
    accuracy, which takes longer.

    Args:
        rounds: tensors of one shape [rounds, buckets, elements].
        signs: [buckets, elements], int8: a quarter of the memory to read.
        factor: the same for all buckets [buckets, 1], float32, > 0.
    Returns: sums of each tensor [rounds, buckets], float32.
    """
    sums = []
    for r in rounds:
        product = computed(r * factor)  # in float32 for 16-bit ones, too
        sums.append(((product * signs).sum(-1, dtype=torch.float64) / factor.squeeze(-1)).float())
        r.copy_(product)
    return sums


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
def _signs(
    size: int, seed: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Rows of signs [size, 8191]: shared by all sketches of a device."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (size, TILE), generator=generator, dtype=torch.int8)
    return (bits * 2 - 1).to(device, dtype)
