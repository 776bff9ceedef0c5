r"""Random sign projections of gradients: a few numbers that keep the squared norm in expectation.

A sketch value is a signed sum :math:`p_b = \sum_{j\in b} s_j g_j` over a bucket of elements, with
fixed random signs.  Since :math:`E\,s_i s_j = 0` for different elements,
:math:`E\sum_b p_b^2 = |g|^2`, and as p is linear in g, moments of p over time estimate those of g
without bias.  Two elements of one bucket disturb the estimate by :math:`\pm 2 g_i g_j`: little
where a gradient is spread over k buckets (a relative error of :math:`\sqrt{2/k}`), but all of it
where two neighbours hold the gradient.

So each tensor is sketched three times, by **hashes** that share the signs: with the elements in
rows of length B, buckets are the rows, the elements B apart, and those B + 1 apart.  With
:math:`B^2` at least the number of elements, any two elements meet in one hash at most, and the
median of the three estimates is right wherever two of them are (:class:`Sketch`).  The signs stay
the same over time: new ones would average the signal away.

With k = 64: a tensor of up to :math:`k^2` elements is kept as it is.  One of :math:`16 k^2` or more
is first **folded**: its eighths are added up, with signs, which costs about as much as reading it,
and the hashes read the sum.  The signs of the fold change from one eighth of the sum to the next,
as the rows of a Hadamard matrix, so that a constant gradient neither cancels nor adds up.  Longer
sums are sketched in rounds of at most :math:`32 k^2`.

Sources: the tug-of-war sketch of Alon, Matias and Szegedy 1996; the median over hashes as in the
count sketch of Charikar, Chen and Farach-Colton 2002.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gqc.gradients import local, multiply_
from gqc.scalers.moments import DebiasedEstimator, Finite, Weight
from gqc.scalers.variance import Grads

HASHES = 3
FOLD = 8
STACKED = 1 << 14  # elements; up to here tensors of one size are hashed together on a CPU
CACHED = 1 << 17  # elements that a CPU's cache holds


def real_numel(tensor: Tensor) -> int:
    """Number of real elements."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def real_flat(tensor: Tensor) -> Tensor:
    """The elements in one row, a complex one as two real ones; a view where the layout allows."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real if real.dim() == 1 else real.reshape(-1)


class Sketch(DebiasedEstimator):
    """Moments of three hashes of each tensor, and the median of what they estimate.

    About 3 floats for 1000 parameters; tensors of up to 4096 elements are kept whole.
    """

    name = "sketch"
    num_hashes = HASHES

    def __init__(self, params: Sequence[Tensor], settings: Any) -> None:
        super().__init__(params, settings)
        shards = local(params)
        numels, devices = [real_numel(p) for p in shards], [p.device for p in shards]
        self._sketch = SignSketch(numels, devices, settings.sketch_size, settings.sketch_seed)
        device, lengths = self._device, torch.tensor(self._sketch.lengths, device="cpu")
        runs = torch.tensor(self._sketch.runs, device="cpu")
        places = zip(*self._sketch.runs, strict=True)
        if self._shards.is_sharded:  # other ranks may hash a tensor where this one's shard is small
            num = len(params)
            places = zip(*(range(h * num, (h + 1) * num) for h in range(HASHES)), strict=True)
        self._set_images([tuple(dict.fromkeys(place)) for place in places])
        self._runs = runs.flatten().to(device)
        self._lengths = lengths.expand(2, -1).contiguous().to(device)
        owner = torch.zeros(len(lengths), dtype=torch.long, device="cpu")
        owner[runs] = torch.arange(len(params), device="cpu").expand_as(runs)
        self._owner = owner.repeat_interleave(lengths).to(device)
        self._mean = zeros(len(self._owner), device)
        self._pair = zeros(2 * len(self._owner), device).view(2, -1)
        self._norm_share = self._sketch.shares().to(device)

    def _prepare(self, grads: Grads, factor: float) -> tuple[Tensor, Tensor]:
        values, scratch = self._sketch(local(grads), factor), self._pair[0]
        if not self._shards.is_sharded:
            return values, torch.dot(torch.mul(values, self._norm_share, out=scratch), values)
        torch.mul(values, values, out=scratch)
        return values, self._shards.reduce(self._sums()[0].mean(0)).sum()

    def _move(self, prepared: Tensor, weight: Weight, finite: Finite, factor: float) -> Tensor:
        move, mean_sq = self._pair.unbind()
        if isinstance(weight, Tensor) and isinstance(finite, Tensor):
            torch.sub(torch.where(finite, prepared, self._mean), self._mean, out=move)
            self._mean.addcmul_(self._of_values(weight), move)
        else:
            torch.sub(prepared, self._mean, out=move)
            self._mean.add_(move, alpha=float(weight))
        move.mul_(move)
        torch.mul(self._mean, self._mean, out=mean_sq)
        return self._sums()

    def _of_values(self, vector: Tensor) -> Tensor:
        """Numbers of tensors [T], for each of the tensors' values; one where all are equal."""
        return vector[:1] if self.has_equal_counts else vector.index_select(0, self._owner)

    def _lists(self) -> dict[str, list[Tensor]]:
        return {"means": [self._mean[place] for place in self._sketch.places]}

    def _sums(self) -> Tensor:
        """Sum both rows of the pair over runs; with shards over each hash and tensor [2, 3, T]."""
        # Unlike index_add, segment_reduce gives the same bits every time on a GPU.
        sums = torch.segment_reduce(self._pair, "sum", lengths=self._lengths, axis=1, unsafe=True)
        if not self._shards.is_sharded:
            return sums
        return sums.index_select(1, self._runs).view(2, HASHES, -1)


class SignSketch:
    """Sketch a list of tensors; the same signs for the same seed, on every device and rank.

    The values of a tensor are one run after another: a run is all of a small tensor, or one hash of
    a larger one.

    Args:
        numels: real elements of each tensor (a complex one is two).
        devices: where each tensor is.
        size: k, see the module.
        seed: of the signs.
    Attributes:
        lengths: number of values of each run.
        runs: the runs of each hash and tensor [3, T]; a small tensor has one for all three.
        places: the slice of values of each tensor.
    """

    def __init__(
        self, numels: Sequence[int], devices: Sequence[torch.device], size: int = 64, seed: int = 0
    ) -> None:
        self._arguments = (list(numels), list(devices), size, seed)
        groups: dict[Any, list[int]] = {}
        for index, (numel, device) in enumerate(zip(numels, devices, strict=True)):
            key: tuple[Any, ...] = (device, "whole")
            if numel > size**2:
                is_stacked = device.type != "cpu" or numel <= min(STACKED, 16 * size**2 - 1)
                key = (device, numel, None if is_stacked else index)
            groups.setdefault(key, []).append(index)
        self.lengths: list[int] = []
        self.runs = [[0] * len(numels) for _ in range(HASHES)]
        self.places = [slice(0)] * len(numels)
        # Members of each part, and those that are multiplied once it has read its own, while the
        # cache holds them.
        self._parts: list[tuple[list[int], _Whole | _Hashes, list[int]]] = []
        sizes: list[int] = []
        waiting: list[int] = []
        done = 0
        for number, ((device, *_), members) in enumerate(groups.items(), 1):
            own = [numels[i] for i in members]
            part: _Whole | _Hashes = _Whole(own, device)
            if own[0] > size**2:
                part = _Hashes(own, size, seed, device)
            waiting += members
            is_due = device.type == "cpu" and sum(numels[i] for i in waiting) > CACHED
            is_due |= number == len(groups)
            self._parts.append((members, part, waiting if is_due else []))
            waiting = [] if is_due else waiting
            for index, lengths in zip(members, part.lengths, strict=True):
                for hashed, runs in enumerate(self.runs):
                    runs[index] = len(self.lengths) + min(hashed, len(lengths) - 1)
                self.lengths += lengths
                self.places[index] = slice(done, done := done + sum(lengths))
            sizes.append(done - sum(sizes))
        self._bind(sizes)

    def _bind(self, sizes: list[int]) -> None:
        """Give each part its values and the scratch of its device, which stays in the cache."""
        parts = [part for _, part, _ in self._parts]
        devices = list(dict.fromkeys(part.device for part in parts))
        self._values = [zeros(n, part.device) for n, part in zip(sizes, parts, strict=True)]
        self._all: Tensor | None = None
        if len(devices) == 1:  # then all values are one tensor
            self._all = zeros(sum(sizes), devices[0])
            self._values = list(self._all.split(sizes))
        for device in devices:
            here = [(p, v) for p, v in zip(parts, self._values, strict=True) if p.device == device]
            rooms = zip(*(part.rooms for part, _ in here), strict=True)
            scratch = [zeros(max(room), device) for room in rooms]
            for part, values in here:
                part.bind(values, scratch)

    def shares(self) -> Tensor:
        """The weight of each value's square in the squared norm, which is the mean over hashes."""
        lengths = torch.tensor(self.lengths, device="cpu")
        share = torch.full_like(lengths, 1 / HASHES, dtype=torch.float32)
        share[[first for first, second, _ in zip(*self.runs, strict=True) if first == second]] = 1.0
        return share.repeat_interleave(lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        return SignSketch, self._arguments  # signs and scratch are made again, not copied

    def __call__(self, tensors: Sequence[Tensor | None], factor: float = 1.0) -> Tensor:
        """Sketch the tensors, then multiply each by ``factor`` in place.

        Doing that here saves half of its cost.

        Returns: values, float32, on the device of the first tensor; None sketches to zeros.  The
            next call overwrites them.
        """
        for members, part, due in self._parts:
            part.read([tensors[i] for i in members])
            if factor != 1.0 and due:
                multiply_([g for i in due if (g := tensors[i]) is not None], factor)
            part.hash()
        if self._all is not None:
            return self._all
        return torch.cat([values.to(self._arguments[1][0]) for values in self._values])


class _Whole:
    """Small tensors as they are, one after another."""

    rooms = (0, 0)

    def __init__(self, numels: list[int], device: torch.device) -> None:
        self.device, self.lengths = device, [[numel] for numel in numels]
        self._zeros = [zeros(numel, device) for numel in numels]

    def bind(self, values: Tensor, scratch: list[Tensor]) -> None:
        self._values = values

    def read(self, grads: list[Tensor | None]) -> None:
        pairs = zip(grads, self._zeros, strict=True)
        torch.cat([zero if g is None else real_flat(g) for g, zero in pairs], out=self._values)

    def hash(self) -> None:
        """Nothing is left to do."""


class _Hashes:
    """The three hashes of a large tensor, or of several tensors of one size."""

    def __init__(self, numels: list[int], size: int, seed: int, device: torch.device) -> None:
        self.device, self._num, numel = device, len(numels), numels[0]
        self._is_folded = numel >= max(16 * size**2, FOLD**4)  # a rest must fit into the sum
        self._part = numel // FOLD**2  # columns of the eighths that have the same signs
        self._columns = FOLD * self._part if self._is_folded else numel
        longest = max(32 * size**2, FOLD**4)
        self._rounds = math.ceil(self._columns / longest)
        self._length = math.ceil(self._columns / self._rounds)
        side = math.isqrt(self._length - 1) + 1
        self._grids = [(math.ceil(self._length / w), w) for w in (side, side, side + 1)]
        self._lengths = [self._rounds * n for n in (self._grids[0][0], side, side + 1)]
        self.lengths = [self._lengths] * self._num
        self._signs = _signs(longest, seed, device)[: self._length]
        self._fold_signs = _fold_signs(seed, device)
        # A CPU does one round after the other, while its cache holds them.
        self._together = 1 if device.type == "cpu" else self._rounds
        self._room = max(rows * columns for rows, columns in self._grids)
        room = self._num * self._together * self._room
        # Several rounds are folded at once, elsewhere than where each is signed and hashed.
        self._is_apart = self._rounds > 1
        # numbers in each of two scratch buffers
        self.rooms = (self._num * self._rounds * self._length if self._is_apart else 0, room)

    def bind(self, values: Tensor, scratch: list[Tensor]) -> None:
        signed = scratch[1][: self.rooms[1]].view(self._num, self._together, self._room)
        self._signed, self._tail = signed.split([self._length, self._room - self._length], -1)
        sums = self._signed
        if self._is_apart:
            sums = scratch[0][: self.rooms[0]].view(self._num, self._rounds, self._length)
        # A row is where a tensor goes; a part of all rows is hashed at once.
        self._rows, self._parts = [*sums.flatten(1).unbind()], sums.split(self._together, 1)
        if self._is_folded:
            self._eighths = [row[: self._columns].view(FOLD, 1, -1) for row in self._rows]
        self._signs_like = [self._signs] * self._num
        self._values = values
        hashes = values.view(self._num, -1).split(self._lengths, 1)
        rounds = [h.unflatten(1, (self._rounds, -1)).split(self._together, 1) for h in hashes]
        grids = [signed[..., : math.prod(grid)].unflatten(-1, grid) for grid in self._grids]
        self._plan = [
            list(zip(grids, (-1, -2, -2), outs, strict=True)) for outs in zip(*rounds, strict=True)
        ]

    def read(self, grads: list[Tensor | None]) -> None:
        """Write the signed elements, or the folded ones, to the scratch."""
        self._is_absent = all(grad is None for grad in grads)
        if self._is_absent:
            return
        for index, (grad, row) in enumerate(zip(grads, self._rows, strict=True)):
            if grad is None:
                row.zero_()
            elif self._is_folded:
                self._fold(real_flat(grad), row, self._eighths[index])
            else:  # there is one round
                real = torch.view_as_real(grad) if grad.is_complex() else grad
                if row.shape != real.shape:  # at first; a gradient keeps its shape
                    self._rows[index] = row = row.view(real.shape)
                    self._signs_like[index] = self._signs.view(real.shape)
                torch.mul(real, self._signs_like[index], out=row)

    def hash(self) -> None:
        """Hash what was read."""
        if self._is_absent:
            self._values.zero_()
            return
        if self._tail.numel():
            self._tail.zero_()
        for part, plan in zip(self._parts, self._plan, strict=True):
            if self._is_folded:
                torch.mul(part, self._signs, out=self._signed)
            for grid, dim, out in plan:
                torch.sum(grid, dim, out=out)

    def _fold(self, flat: Tensor, sums: Tensor, eighths: Tensor) -> None:
        """Write the signed sum of the eighths, with zeros up to whole rounds."""
        whole = FOLD * self._columns
        rest = len(flat) - whole  # fewer than 64 elements: a ninth row that ends early
        parts = (flat[:whole] if rest else flat).view(FOLD, FOLD, self._part).transpose(0, 1)
        torch.bmm(self._fold_signs, parts.float(), out=eighths)
        if len(sums) > self._columns:
            sums[self._columns :].zero_()
        if rest:
            sums[:rest].add_(flat[whole:])


def zeros(numel: int, device: torch.device) -> Tensor:
    """Statistics before the first gradient, whatever torch's defaults are."""
    return torch.zeros(numel, device=device, dtype=torch.float32)


@functools.lru_cache(maxsize=32)
def _signs(numel: int, seed: int, device: torch.device) -> Tensor:
    """Signs of elements, shared by all sketches of a device."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (numel,), generator=generator, dtype=torch.int8, device="cpu")
    return (bits * 2 - 1).to(device, torch.float32)


@functools.lru_cache(maxsize=32)
def _fold_signs(seed: int, device: torch.device) -> Tensor:
    """Signs of the eighths for each part [8, 1, 8]: a Hadamard matrix with random columns."""
    rows = torch.ones(1, 1, device="cpu", dtype=torch.float32)
    while len(rows) < FOLD:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    return (rows * _signs(FOLD, seed + 1, torch.device("cpu"))).to(device).unsqueeze(1)
