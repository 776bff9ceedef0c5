r"""The normalised variance of each tensor's gradient, estimated from the stream of gradients.

For a tensor with gradient elements :math:`g_j = \mu_j + \epsilon_j` the noise-to-signal ratio is

.. math:: V = \frac{\sum_j \sigma_j^2}{\sum_j \mu_j^2}

Two estimators of it, both with debiased exponentially weighted moments (:mod:`gqc.noise`):
:class:`~gqc.scalers.elementwise.Elementwise` keeps the moments of every element, :class:`Sketch`
those of a few random sign projections.  Both assume independent draws around a mean that stays.  A
mean that moves counts as noise; correlated noise counts as signal.
:class:`~gqc.scalers.differences.Differences` overlooks most of a moving mean, and most of
correlated noise too, so it is no default:

============================================ ======= ======== =============
stream (4096 elements, beta 0.99)            truth V sketch   differences
============================================ ======= ======== =============
independent noise                            10      10.1     10.1
no noise, mean falling as exp(-t/500)        0       0.035    0.0000
no noise, mean falling as exp(-t/50)         0       19.6     0.0037
no noise, mean falling as exp(-t/20)         0       192      0.12
noise with autocorrelation 0.5               10      9.0      4.4
noise with autocorrelation 0.9               10      5.0      0.53
============================================ ======= ======== =============

The four that were published before, which measure other things, are in
:mod:`gqc.scalers.published`.

Both keep squares in float32: right for gradients of tensors with norms of about 1e-16 to 1e19.
A larger one counts as not finite, and is skipped.

Only the **sum** of the spread over a tensor enters V, and its recursion is linear, so one number
per tensor holds it: :math:`S_t = (1-a_t)(S_{t-1} + a_t|g_t - m_{t-1}|^2)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gqc.gradients import constant, is_on_host, local
from gqc.noise import estimates
from gqc.scalers.parameters import which_train
from gqc.scalers.shards import ShardSums, gather, spread
from gqc.scalers.sketch import HASHES, SignSketch, real_numel

Grads = Sequence[Tensor | None]


class ScalarAverages:
    r"""Bias-corrected averages of mean|g|, var|g|, norm, max|g| of all tensors together, to log.

    ``raw`` holds :math:`\bar x_t = \beta\bar x_{t-1} + (1-\beta)x_t`, from the first value on as in
    versions 1.x and 2.x (``first_value``) or from zero; :meth:`corrected` divides by
    :math:`1-\beta^t`.
    """

    def __init__(self, beta: float, device: torch.device) -> None:
        self.beta = beta
        self.raw = torch.zeros(4, device=device)
        self.count = torch.zeros(4, device=device)  # of each number: some may not be tracked

    def update(self, values: Tensor, first_value: bool) -> None:
        """Average in ``values`` [4], as published: a NaN stays forever."""
        raw = self.beta * self.raw + (1 - self.beta) * values
        self.raw = torch.where(self.count == 0, values, raw) if first_value else raw
        self.count = self.count + 1

    def update_raw(self, norm_sq: Tensor, values: Tensor | None) -> None:
        """Average in the norm, or all ``values`` [4]; nothing unless ``norm_sq`` is finite."""
        finite = norm_sq < constant(math.inf, norm_sq)
        if values is None:
            mean = self.raw[2]
            mean.lerp_(torch.where(finite, norm_sq.sqrt(), mean), 1 - self.beta)
            self.count[2].add_(finite)
        else:
            values = torch.where(finite, values.to(self.raw.device), self.raw)
            self.raw = self.raw.lerp(values, 1 - self.beta)
            self.count = self.count + finite

    def corrected(self) -> Tensor:
        """Bias-corrected averages [4]; 0 before the first value."""
        share = -torch.expm1(self.count * math.log(self.beta))
        return torch.where(self.count > 0, self.raw / share, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """``raw`` and ``count``, copied."""
        return {"raw": self.raw.clone(), "count": self.count.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`state_dict`."""
        for key in ("raw", "count"):
            mine = getattr(self, key)
            setattr(self, key, state[key].to(mine.device, mine.dtype, copy=True).reshape(4))


class VarianceEstimator:
    """What the scaler needs of an estimator, which begins with empty statistics.

    Args:
        params: the T tensors.
        settings: :class:`~gqc.scalers.settings.Settings` of the scaler.
    Attributes:
        name: its name in ``estimator=``.
        reads_raw: does it read gradients before they are scaled and clipped?
        num_hashes: images of each tensor; with one it keeps a number for each element.
        vectors: names of its statistics, tensors [..., T] or 0-dim.
        averages: of the whole gradient's norm and the like, for logging.
        num_skipped: updates that were skipped because a gradient was not finite, 0-dim.
    """

    name: ClassVar[str]
    reads_raw: ClassVar[bool] = True
    num_hashes: ClassVar[int] = 1
    vectors: ClassVar[tuple[str, ...]]

    def __init__(self, params: Sequence[Tensor], settings: Any) -> None:
        self.beta, device = settings.beta, local(params)[0].device
        self.averages = ScalarAverages(self.beta, device)
        self.num_skipped = torch.zeros((), device=device)
        self._shards = ShardSums(params)
        self._which_train = partial(which_train, params, [p.numel() for p in params])
        self._found: list[int] = []  # elements of each gradient, -1 for none

    def update(self, grads: Grads, factor: float = 1.0) -> Tensor | None:
        """Take in one gradient per tensor (None: none this time), without a host sync.

        Args:
            grads: the gradients.
            factor: then multiply each of them by it, in place, while the cache still holds it.
        Returns: for estimators that read the raw gradient, its squared norm (exact or sketched),
            0-dim; where that is not finite, the gradient was skipped.
        """
        raise NotImplementedError

    def ratios(self, variance_cap: float | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """V of each tensor, which are unresolved, and which count at all (None: all); each [T]."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Statistics as tensors, plain numbers and lists of them, copied."""
        state: dict[str, Any] = {k: getattr(self, k).clone() for k in self.vectors}
        lists = {k: [t.clone() for t in v] for k, v in self._lists().items()}
        if self._shards.is_sharded:
            lists = spread(lists, self._shards.params, self.num_hashes == 1)
        return {**state, "averages": self.averages.state_dict(), **lists}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict` in a new estimator; raises ValueError if it does not fit."""
        state = gather(state, list(self._lists()), self._shards.params)
        expected = {k: getattr(self, k) for k in self.vectors} | self._lists()
        if missing := [k for k in (*expected, "averages") if k not in state]:
            raise ValueError(f"statistics of {self.name!r} lack {missing}: the file is damaged")
        for key, value in expected.items():
            here, there = ([x] if isinstance(x, Tensor) else x for x in (value, state[key]))
            own, saved = ([list(t.shape) for t in tensors] for tensors in (here, there))
            if saved != own:
                raise ValueError(
                    f"statistics {key!r} have shapes {saved} in the checkpoint and {own} here: it "
                    "is another model's, or another number of ranks'"
                )
            for mine, other in zip(here, there, strict=True):
                mine.copy_(other)
        self.averages.load_state_dict(state["averages"])

    def carry(self, other: Self, kept: Sequence[int | None]) -> None:
        """Take tensor i's statistics from tensor ``kept[i]`` of ``other``; None starts empty."""
        self.num_skipped, self.averages = other.num_skipped, other.averages
        for new, old in enumerate(kept):
            if old is not None:
                for key in self.vectors:
                    if (mine := getattr(self, key)).dim():
                        mine[..., new] = getattr(other, key)[..., old]
                for key, lists in self._lists().items():
                    lists[new].copy_(other._lists()[key][old])

    def _presence(self, grads: Grads) -> Tensor:
        """1 for tensors that have a gradient with elements; copied when the pattern changes."""
        if (found := [-1 if g is None else g.numel() for g in grads]) != self._found:
            self._found, has = found, [numel > 0 for numel in found]
            self._are_all_present = all(has)
            self._present = torch.tensor(has, dtype=torch.float32, device=self.num_skipped.device)
        return self._present

    def _lists(self) -> dict[str, list[Tensor]]:
        """Statistics with one tensor for each parameter."""
        return {}


class DebiasedEstimator(VarianceEstimator):
    """Debiased moments of a linear image of the gradient: state and algebra, not the image.

    A subclass keeps the weighted mean of each tensor's image, flat and float32, and moves it.  One
    with several images of a tensor has as many estimates of its moments, and takes their medians.
    """

    vectors = ("count", "spread", "mean_sq", "num_skipped")

    def __init__(self, params: Sequence[Tensor], settings: Any) -> None:
        super().__init__(params, settings)
        device = self.num_skipped.device
        self.count = torch.zeros(len(params), device=device)  # updates of each tensor
        shape = (self.num_hashes, len(params)) if self.num_hashes > 1 else (len(params),)
        self.spread = torch.zeros(shape, device=device)
        self.mean_sq = torch.zeros_like(self.spread)
        self.has_equal_counts = True  # of updates; saves a gather
        self._kappa = torch.ones_like(self.count)

    def update(self, grads: Grads, factor: float = 1.0) -> Tensor:
        presence, is_full = self._presence(grads), self._are_all_present
        prepared, norm_sq = self._prepare(grads, factor)
        self.has_equal_counts &= is_full
        finite = norm_sq < constant(math.inf, norm_sq)
        if self.has_equal_counts and is_on_host(norm_sq) and finite:
            count = self.count + constant(1, self.count)
            weight, self._kappa = estimates.known_weights(int(count[0]), self.beta)
        else:
            is_moved = finite.to(self.count.dtype)
            moved = is_moved if is_full else presence * is_moved
            self.num_skipped = self.num_skipped + (constant(1, is_moved) - is_moved)
            count = self.count + moved
            weight, self._kappa = estimates.ema_weight_and_kappa(count.abs(), self.beta)
            weight = weight * moved
        sums = self._move(prepared, weight, finite, factor)
        squares, mean_sq = self._shards.reduce(sums).unbind()
        self.spread = self._average(squares, weight)
        if not is_full:
            mean_sq = torch.where(weight > constant(0, weight), mean_sq, self.mean_sq)
        self.mean_sq, self.count = mean_sq, count
        return norm_sq

    def ratios(self, variance_cap: float | None) -> tuple[Tensor, Tensor, Tensor | None]:
        variance, signal = self._moments(self._kappa)
        if self.num_hashes > 1:
            variance, signal = _median_of_three(torch.stack([variance, signal], 1)).unbind()
        largest = 1 / self._kappa if variance_cap is None else variance_cap
        counted = None if self.has_equal_counts else self.count > 0
        return *estimates.noise_to_signal(variance, signal, largest), counted

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._look_at_counts()

    def carry(self, other: Self, kept: Sequence[int | None]) -> None:
        super().carry(other, kept)
        self._look_at_counts()

    def _presence(self, grads: Grads) -> Tensor:
        known, presence = self._found, super()._presence(grads)
        if self._found is not known:
            trains = torch.tensor(self._which_train(self._found), device=self.count.device)
            self.count = torch.where(trains, self.count.abs(), -self.count.abs())  # < 0: frozen
        return presence

    def _look_at_counts(self) -> None:
        self.has_equal_counts = bool((self.count == self.count[0]).all())
        self._kappa = estimates.ema_weight_and_kappa(self.count.abs(), self.beta)[1]

    def _prepare(self, grads: Grads, factor: float) -> tuple[Any, Tensor]:
        """What ``_move`` needs of the gradients, and their squared norm over all ranks."""
        raise NotImplementedError

    def _move(self, prepared: Any, weight: Tensor, finite: Tensor, factor: float) -> Tensor:
        """Move the means by ``weight`` [T]; the squares of move and mean [2, (hashes,) T] here,
        which mean nothing where the weight is 0.  It is 0-dim where the host knows that all move.

        Whichever of the two methods reads the gradients last multiplies them by ``factor``.
        """
        raise NotImplementedError

    def _average(self, squares: Tensor, weight: Tensor) -> Tensor:
        """Return the spread with the newest squares; a weight of 0 leaves a tensor as it was."""
        return (constant(1, weight) - weight) * (self.spread + weight * squares)

    def _moments(self, kappa: Tensor) -> tuple[Tensor, Tensor]:
        """Return variance and squared signal, in the shape of ``spread``."""
        return estimates.debiased_moments(self.spread, self.mean_sq, kappa)


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
        device, lengths = self.count.device, torch.tensor(self._sketch.lengths)
        runs = torch.tensor(self._sketch.runs)
        self._runs = runs.flatten().to(device)
        self._lengths = lengths.expand(2, -1).contiguous().to(device)
        owner = torch.zeros(len(lengths), dtype=torch.long)
        owner[runs] = torch.arange(len(params)).expand_as(runs)
        self._owner = owner.repeat_interleave(lengths).to(device)
        self._mean = torch.zeros(len(self._owner), device=device)
        self._pair = torch.zeros(2, len(self._owner), device=device)
        is_whole = runs[0] == runs[1]
        share = torch.where(is_whole, 1.0, 1 / HASHES)[owner]  # the norm is the mean over hashes
        self._share = share.repeat_interleave(lengths).to(device)

    def _prepare(self, grads: Grads, factor: float) -> tuple[Tensor, Tensor]:
        values = self._sketch(local(grads), factor)
        if not self._shards.is_sharded:
            return values, torch.dot(values * self._share, values)
        torch.mul(values, values, out=self._pair[0])
        return values, self._shards.reduce(self._sums()[0].mean(0)).sum()

    def _move(self, prepared: Tensor, weight: Tensor, finite: Tensor, factor: float) -> Tensor:
        read = torch.where(finite, prepared, self._mean) if weight.dim() else prepared
        move = read - self._mean
        self._mean.addcmul_(self._of_values(weight), move)
        torch.mul(move, move, out=self._pair[0])
        torch.mul(self._mean, self._mean, out=self._pair[1])
        return self._sums()

    def _of_values(self, vector: Tensor) -> Tensor:
        """Numbers of tensors [T], for each of the tensors' values; one where all are equal."""
        if self.has_equal_counts:
            return vector[:1] if vector.dim() else vector
        return vector.index_select(0, self._owner)

    def _lists(self) -> dict[str, list[Tensor]]:
        return {"means": [self._mean[place] for place in self._sketch.places]}

    def _sums(self) -> Tensor:
        """Sum both rows of the pair over each hash of each tensor [2, 3, T].

        Unlike index_add, it gives the same bits every time on a GPU.
        """
        sums = torch.segment_reduce(self._pair, "sum", lengths=self._lengths, axis=1, unsafe=True)
        return sums.index_select(1, self._runs).view(2, HASHES, -1)


def _median_of_three(values: Tensor) -> Tensor:
    """Return the median over the first dimension; ``torch.median`` is 20 times slower here."""
    a, b, c = values.unbind()
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
