r"""The normalised variance of each tensor's gradient, estimated from the stream of gradients.

For a tensor with gradient elements :math:`g_j = \mu_j + \epsilon_j` the noise-to-signal ratio is

.. math:: V = \frac{\sum_j \sigma_j^2}{\sum_j \mu_j^2}

Two estimators of it, both with debiased exponentially weighted moments (:mod:`gqc.noise`):
:class:`~gqc.scalers.elementwise.Elementwise` keeps the moments of every element,
:class:`~gqc.scalers.sketch.Sketch` those of a few random sign projections.  Both assume independent
draws around a mean that stays.  A mean that moves counts as noise; correlated noise counts as
signal.  :class:`~gqc.scalers.differences.Differences` overlooks most of a moving mean, and most of
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

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from gqc.gradients import local
from gqc.scalers.parameters import which_train
from gqc.scalers.shards import ShardSums, gather, spread

Grads = Sequence[Tensor | None]


class Reading(NamedTuple):
    """What an estimator says on the host; lists are of tensors.

    Attributes:
        ratios: V, at most the cap (of published estimators: 1e6).
        counted: does the tensor count, as one that trains and had a gradient?
        unresolved: is there noise, and no positive signal?
        scalars: bias-corrected averages of mean|g|, var|g|, norm and max|g| of all tensors; 0
            before the first.
        num_skipped: updates that were skipped because a gradient was not finite.
    """

    ratios: list[float]
    counted: list[bool]
    unresolved: list[bool]
    scalars: list[float]
    num_skipped: int


class VarianceEstimator:
    """What the scaler needs of an estimator, which begins with empty statistics.

    Args:
        params: the T tensors.
        settings: :class:`~gqc.scalers.settings.Settings` of the scaler.
    Attributes:
        name: its name in ``estimator=``.
        reads_raw: does it read gradients before they are scaled and clipped?
        has_elements: does it keep a number for each element?
    """

    name: ClassVar[str]
    reads_raw: ClassVar[bool] = True
    has_elements: ClassVar[bool] = False

    def __init__(self, params: Sequence[Tensor], settings: Any) -> None:
        self.beta, self._device = settings.beta, local(params)[0].device
        self._shards = ShardSums(params)
        self._which_train = partial(which_train, params, [p.numel() for p in params])
        self._found: list[int] = []  # elements of each gradient, -1 for none

    def update(self, grads: Grads, factor: float = 1.0, tracked: Tensor | None = None) -> bool:
        """Take in one gradient per tensor (None: none this time), without a host sync.

        Args:
            grads: the gradients; where one is not finite, all are skipped.
            factor: then multiply each of them by it, in place, while the cache still holds it.
            tracked: mean|g|, var|g|, norm and max|g| of all of them [4], to average.
        Returns: are all numbers on the host already?
        """
        raise NotImplementedError

    def read(self, variance_cap: float | None) -> Reading:
        """Return all numbers; at most one host sync."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Statistics as tensors, plain numbers and lists of them, copied."""
        state: dict[str, Any] = {k: v.clone() for k, v in self._vectors().items()}
        lists = {k: [t.clone() for t in v] for k, v in self._lists().items()}
        if self._shards.is_sharded:
            lists = spread(lists, self._shards.params, self.has_elements)
        return {**state, "averages": self.scalars(), **lists}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict` in a new estimator; raises ValueError if it does not fit."""
        state = gather(state, list(self._lists()), self._shards.params)
        expected = self._vectors() | self._lists()
        if missing := [k for k in (*expected, "averages") if k not in state]:
            raise ValueError(f"statistics of {self.name!r} lack {missing}: the file is damaged")
        for key, value in expected.items():
            here, there = value, state[key]
            if isinstance(value, Tensor):  # 4.0 had a count as a plain number
                here, there = [value], [torch.as_tensor(there, device="cpu")]
            own, saved = ([list(t.shape) for t in tensors] for tensors in (here, there))
            if saved != own:
                raise ValueError(
                    f"statistics {key!r} have shapes {saved} in the checkpoint and {own} here: it "
                    "is another model's, or another number of ranks'"
                )
            for mine, other in zip(here, there, strict=True):
                mine.copy_(other)
        self._take(expected, state["averages"])

    def carry(self, other: Self, kept: Sequence[int | None]) -> None:
        """Take tensor i's statistics from tensor ``kept[i]`` of ``other``; None starts empty."""
        vectors, theirs = self._vectors(), other._vectors()
        for key, mine in vectors.items():
            for new, old in enumerate(kept):
                if mine.dim() and old is not None:
                    mine[..., new] = theirs[key][..., old]
            if not mine.dim():
                mine.copy_(theirs[key])
        for key, lists in self._lists().items():
            for new, old in enumerate(kept):
                if old is not None:
                    lists[new].copy_(other._lists()[key][old])
        self._take(vectors, other.scalars())

    def scalars(self) -> dict[str, Tensor]:
        """Averages before they are corrected and their numbers of updates, "raw", "count" [4]."""
        raise NotImplementedError

    def load_scalars(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`scalars`."""
        self._take(self._vectors(), state)

    def _vectors(self) -> dict[str, Tensor]:
        """Statistics of all tensors together, [..., T] or 0-dim; it may be written to."""
        raise NotImplementedError

    def _take(self, vectors: dict[str, Any], scalars: dict[str, Tensor]) -> None:
        """Go on from ``vectors``, as :meth:`_vectors` returned them, and :meth:`scalars`."""
        raise NotImplementedError

    def _presence(self, grads: Grads) -> Tensor:
        """1 for tensors that have a gradient with elements; copied when the pattern changes."""
        if (found := [-1 if g is None else g.numel() for g in grads]) != self._found:
            self._found, has = found, [numel > 0 for numel in found]
            self._are_all_present = all(has)
            self._present = torch.tensor(has, dtype=torch.float32, device=self._device)
        return self._present

    def _lists(self) -> dict[str, list[Tensor]]:
        """Statistics with one tensor for each parameter."""
        return {}
