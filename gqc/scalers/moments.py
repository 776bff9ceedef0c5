"""Debiased moments of linear images of gradients over time, kept as numbers on the host.

What is one number for an image is calculated there, at less cost than by as many operations of a
device: rows of such numbers wait on the device until they are asked for, so that no update waits
for it.  On a CPU they are asked for at once.
"""

import math
import sys
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gqc.gradients import is_on_host
from gqc.noise.estimates import ema_numbers, ema_weight
from gqc.scalers.variance import Grads, Reading, VarianceEstimator

MOST_ROWS = 1000  # that wait on a device
TINY = sys.float_info.min  # in place of a signal that is not positive

Floats = list[float]
Weight = float | Tensor  # of tensors [T], or one where the host knows that it is all of them's
Finite = bool | Tensor


class Moments(NamedTuple):
    """Never changed, but replaced, so that another thread may read.

    Attributes:
        counts: updates of each tensor; negative where it is frozen.
        spread, mean_sq: of each image.
        num_skipped: see :class:`~gqc.scalers.variance.Reading`.
        raw, updates: see ``scalars()`` of an estimator.
    """

    counts: Floats
    spread: Floats
    mean_sq: Floats
    num_skipped: int
    raw: Floats
    updates: Floats


class DebiasedEstimator(VarianceEstimator):
    """Debiased moments of a linear image of the gradient: state and algebra, not the image.

    A subclass keeps the weighted mean of each tensor's image, flat and float32, and moves it.  One
    with several images of a tensor has as many estimates of its moments, and takes their medians.
    """

    num_hashes: ClassVar[int] = 1

    def __init__(self, params: Sequence[Tensor], settings: Any) -> None:
        super().__init__(params, settings)
        self.has_equal_counts = True  # of updates; saves a gather
        self._set_images([(index,) for index in range(len(params))])

    def _set_images(self, places: list[tuple[int, ...]]) -> None:
        """Begin with empty statistics; the images of each tensor have these places in a row."""
        self._places, self._firsts = places, [place[0] for place in places]
        self._several = [(i, itemgetter(*place)) for i, place in enumerate(places) if place[1:]]
        owners = {image: tensor for tensor, place in enumerate(places) for image in place}
        self._owners, none = [owners[image] for image in range(len(owners))], [0.0] * len(owners)
        self._go_on(Moments([0.0] * len(places), none, none, 0, [0.0] * 4, [0.0] * 4))

    def _go_on(self, moments: Moments) -> None:
        self._count: Tensor | None = None
        self._now: tuple[Moments, tuple[Tensor, ...]] = moments, ()  # and the rows since then
        self._settled: tuple[Any, Moments] = self._now, moments

    @property
    def count(self) -> Tensor:
        """The present :attr:`Moments.counts` on the device."""
        if self._count is None:
            counts = self._settle().counts
            self._count = torch.tensor(counts, device=self._device, dtype=torch.float32)
        return self._count

    def update(self, grads: Grads, factor: float = 1.0, tracked: Tensor | None = None) -> bool:
        presence, is_full = self._presence(grads), self._are_all_present
        prepared, norm_sq = self._prepare(grads, factor)
        self.has_equal_counts &= is_full
        known, moments = self._settled
        moments, rows = (moments, ()) if known is self._now else self._now
        more = [] if tracked is None else [tracked.to(norm_sq)]
        if self.has_equal_counts and is_on_host(norm_sq) and (norm := norm_sq.item()) < math.inf:
            counts = [count + 1 for count in moments.counts]
            weight = ema_numbers(int(counts[0]), self.beta)[0]
            sums = self._shards.reduce(self._move(prepared, weight, True, factor))
            start = [norm, *(number for values in more for number in values.tolist()), *counts]
            self._go_on(self._advanced(moments, start + sums.flatten().tolist()))
            return True
        finite = norm_sq < math.inf
        moved = presence * finite.to(torch.float32)
        count = self.count + moved
        weights = ema_weight(count.abs(), self.beta) * moved
        sums = self._shards.reduce(self._move(prepared, weights, finite, factor))
        self._count = count
        self._now = moments, (*rows, torch.cat([norm_sq.view(1), *more, count, sums.flatten()]))
        if is_on_host(norm_sq) or len(rows) == MOST_ROWS:
            self._settle()
        return is_on_host(norm_sq)

    def _settle(self) -> Moments:
        """Return the moments with all rows; another thread may ask while one updates."""
        known, moments = self._settled
        return moments if known is self._now else self._fetch()[0]

    def fetch(self, number: Tensor) -> float:
        """Return a number, and by the same host sync what waits for one."""
        return self._fetch(number.to(self._device, torch.float32).view(1))[1][0]

    def _fetch(self, *more: Tensor) -> tuple[Moments, list[float]]:
        now, (known, moments) = self._now, self._settled
        moments, rows = (moments, ()) if known is now else now
        values = torch.cat([*rows, *more]).tolist() if rows or more else []
        start = 0
        for row in rows:
            moments = self._advanced(moments, values[start : (start := start + len(row))])
        self._settled = now, moments
        return moments, values[start:]

    def _advanced(self, last: Moments, row: list[float]) -> Moments:
        images = len(self._owners)
        end = len(row) - 2 * images
        start = end - len(last.counts)
        counts, squares, mean_sq = row[start:end], row[end:-images], row[-images:]
        if not row[0] < math.inf:
            return last._replace(counts=counts, num_skipped=last.num_skipped + 1)
        if self.has_equal_counts:
            shares = [self._share(counts[0], last.counts[0])] * images
        else:
            pairs = [(abs(now), abs(old)) for now, old in zip(counts, last.counts, strict=True)]
            shares = [self._share(*pairs[owner]) for owner in self._owners]
            moved = [pairs[owner][0] > pairs[owner][1] for owner in self._owners]
            triples = zip(moved, mean_sq, last.mean_sq, strict=True)
            mean_sq = [new if has_moved else old for has_moved, new, old in triples]
        spread = self._averaged(shares, last.spread, squares)
        raw, updates = [*last.raw], [*last.updates]
        for i, value in enumerate(row[1:start]) if start > 1 else [(2, math.sqrt(row[0]))]:
            raw[i] += (1 - self.beta) * (value - raw[i])
            updates[i] += 1
        return Moments(counts, spread, mean_sq, last.num_skipped, raw, updates)

    def read(self, variance_cap: float | None) -> Reading:
        now = self._settle()
        known = {count: self._kappa_and_scale(abs(int(count))) for count in {*now.counts}}
        of_images = [*known.values()] * len(self._owners)
        if len(known) > 1:
            of_images = [known[now.counts[owner]] for owner in self._owners]
        triples = zip(now.mean_sq, now.spread, of_images, strict=True)
        signals = [mean - kappa * scale * spread for mean, spread, (kappa, scale) in triples]
        spread, signal = ([x[i] for i in self._firsts] for x in (now.spread, signals))
        for tensor, images in self._several:
            spread[tensor] = sorted(images(now.spread))[1]
            signal[tensor] = sorted(images(signals))[1]
        most = {count: variance_cap or 1 / kappa for count, (kappa, _) in known.items()}
        ratios = [
            min(known[count][1] * x / max(TINY, y), most[count]) if x > 0 else 0.0
            for x, y, count in zip(spread, signal, now.counts, strict=True)
        ]
        averages = zip(now.raw, now.updates, strict=True)
        scalars = [x / (1 - self.beta**n) if n else 0.0 for x, n in averages]
        counted = [count > 0 for count in now.counts]
        unresolved = [x > 0 >= y for x, y in zip(spread, signal, strict=True)]
        return Reading(ratios, counted, unresolved, scalars, now.num_skipped)

    def scalars(self) -> dict[str, Tensor]:
        now = self._settle()
        pair = torch.tensor([now.raw, now.updates], dtype=torch.float64, device="cpu")
        return dict(zip(("raw", "count"), pair.unbind(), strict=True))

    def _vectors(self) -> dict[str, Tensor]:
        now = self._settle()
        columns = [place * (self.num_hashes // len(place)) for place in self._places]
        rows = torch.tensor(columns, device="cpu").t()
        rows = rows if self.num_hashes > 1 else rows[0]
        num_skipped = torch.tensor(now.num_skipped, dtype=torch.float32, device="cpu")
        found = {"count": self.count.clone(), "num_skipped": num_skipped}
        for key, values in (("spread", now.spread), ("mean_sq", now.mean_sq)):
            found[key] = torch.tensor(values, dtype=torch.float64, device="cpu")[rows]
        return found

    def _take(self, vectors: dict[str, Any], scalars: dict[str, Tensor]) -> None:
        raw, updates = (scalars[key].reshape(4).tolist() for key in ("raw", "count"))
        counts, num_skipped = vectors["count"].tolist(), int(vectors["num_skipped"])
        spread, mean_sq = ([0.0] * len(self._owners) for _ in range(2))
        for values, key in ((spread, "spread"), (mean_sq, "mean_sq")):
            columns = vectors[key].view(-1, len(counts)).t().tolist()
            for place, column in zip(self._places, columns, strict=True):
                for image, value in zip(place, column, strict=False):
                    values[image] = value
        self._go_on(Moments(counts, spread, mean_sq, num_skipped, raw, updates))
        self.has_equal_counts = len({*counts}) == 1

    def _presence(self, grads: Grads) -> Tensor:
        known, presence = self._found, super()._presence(grads)
        if self._found is not known:
            trains = torch.tensor(self._which_train(self._found), device=self._device)
            self._count = torch.where(trains, self.count.abs(), -self.count.abs())  # < 0: frozen
        return presence

    def _prepare(self, grads: Grads, factor: float) -> tuple[Any, Tensor]:
        """What ``_move`` needs of the gradients, and their squared norm over all ranks."""
        raise NotImplementedError

    def _move(self, prepared: Any, weight: Weight, finite: Finite, factor: float) -> Tensor:
        """Move the means by ``weight``; the squares of move and mean of each image [2, ...], which
        mean nothing where the weight is 0.

        Whichever of the two methods reads the gradients last multiplies them by ``factor``.
        """
        raise NotImplementedError

    def _share(self, count: float, before: float) -> float:
        """Return the share of the newest squares in the spread; 0: none."""
        return ema_numbers(int(count), self.beta)[0] if count > before else 0.0

    def _averaged(self, shares: Floats, spread: Floats, squares: Floats) -> Floats:
        """Return the spread of each image with the newest squares."""
        triples = zip(shares, spread, squares, strict=True)
        return [(1 - a) * (old + a * square) for a, old, square in triples]

    def _kappa_and_scale(self, count: int) -> tuple[float, float]:
        """Return kappa, and variance over spread: 1 / (1 - kappa), or 0 as one value has none."""
        kappa = ema_numbers(count, self.beta)[1]
        return kappa, 1 / (1 - kappa) if kappa < 1 else 0.0
