r"""Are successive draws independent, as every estimate of their noise assumes?"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from gqc.checks import check_count
from gqc.gradients import local
from gqc.scalers.sketch import HASHES, SignSketch, real_numel


class ProductSketch:
    """Short vectors whose dot products estimate those of gradients, without bias.

    Args:
        size, seed: of the sketch (:mod:`gqc.scalers.sketch`).
    """

    def __init__(self, size: int = 64, seed: int = 0) -> None:
        self._options = (size, seed)
        self._sketch: SignSketch | None = None
        self._weight = torch.ones(0)

    def __call__(self, grads: Sequence[Tensor]) -> Tensor:
        """Return the vector of one draw; of ``DTensor`` that of this rank's shards.

        Raises: ValueError: tensors of other sizes than before.
        """
        shards = local(grads)
        numels = [real_numel(t) for t in shards]
        if self._sketch is None:
            self._numels = numels
            self._sketch = SignSketch(numels, [t.device for t in shards], *self._options)
            share = torch.full((len(self._sketch.lengths),), 1 / HASHES)
            share[[a for a, b, _ in zip(*self._sketch.runs, strict=True) if a == b]] = 1.0
            lengths = torch.tensor(self._sketch.lengths)
            self._weight = share.sqrt().repeat_interleave(lengths).to(shards[0].device)
        if numels != self._numels:
            raise ValueError(f"tensors of {numels} elements: expected {self._numels}")
        return self._sketch(shards) * self._weight


class DrawCorrelation:
    r"""Autocorrelation of the noise of successive draws, from products at two distances.

    With :math:`g_t = G + \epsilon_t` and :math:`\rho_l` the correlation of noise l draws apart,
    :math:`E\langle g_t, g_{t-l}\rangle = |G|^2 + \rho_l\,\mathrm{tr}\,\Sigma`.  A cosine of
    neighbours mixes both terms; the difference of products at distance 1 and at a distance where
    noise has lost its memory does not:

    .. math:: \hat\rho = \frac{P_1 - P_L}{P_0 - P_L}

    About 0 for independent draws, whatever their noise scale.  Above 0: the noise scale comes out
    too small, by about :math:`1 - \rho` from differences, by more from windows of few draws.  A
    mean that moves much within L draws looks the same.

    The products are those of sketches (:mod:`gqc.scalers.sketch`): a pass over the gradient, L + 1
    sketches of memory, and one host sync a draw.  Of a ``DTensor`` it sees this rank's shard.

    Args:
        far: L >= 2, draws after which noise has no memory.
        size, seed: of the sketch.
    Attributes:
        num_draws: draws so far.
    Warns: once, as soon as the correlation exceeds 0.1 and four of its standard errors.
    """

    def __init__(self, far: int = 16, size: int = 64, seed: int = 0) -> None:
        check_count("far", far, 2)
        self.far, self.num_draws = far, 0
        self._sketch = ProductSketch(size, seed)
        self._past: deque[Tensor] = deque(maxlen=far)
        self._sums = [0.0] * 4  # of draws with a partner L before: P_0, P_1, P_L, (P_1 - P_L)^2
        self._num_pairs = 0
        self._has_warned = False

    @torch.no_grad()
    def update(self, grads: Sequence[Tensor], factor: float | Tensor = 1.0) -> None:
        """Take in one draw, times ``factor``; one with NaN or infinity is passed over.

        Raises: ValueError: tensors of other sizes than before.
        """
        values = self._sketch(grads) * factor
        pair = [values]
        if len(self._past) == self.far:
            pair += [self._past[-1], self._past[0]]
        products = [float(x) for x in torch.stack([torch.dot(values, v) for v in pair]).tolist()]
        if not all(map(math.isfinite, products)):
            return
        self._past.append(values)
        self.num_draws += 1
        if len(products) == 3:
            own, near, far = products
            self._num_pairs += 1
            for index, value in enumerate((own, near, far, (near - far) ** 2)):
                self._sums[index] += value
            self._warn()

    def correlation(self) -> float | None:
        r""":math:`\hat\rho`; None for fewer than L + 1 draws, or draws without noise."""
        own, near, far = self._sums[:3]
        return (near - far) / (own - far) if self._num_pairs and own > far else None

    def _warn(self) -> None:
        correlation, count = self.correlation(), self._num_pairs
        if self._has_warned or correlation is None or count < 2 * self.far:
            return
        mean = (self._sums[1] - self._sums[2]) / count
        # Successive terms share draws, so that their mean varies up to twice as much.
        error = 2 * math.sqrt(max(self._sums[3] / count - mean**2, 0.0) / count)
        if correlation > 0.1 and mean > 4 * error:
            self._has_warned = True
            warnings.warn(
                f"successive draws have a correlation of {correlation:.2f}: noise scales and "
                "variances assume independent draws and come out too small. Shuffle the data, or "
                "split packed documents over draws; if the mean itself moves this fast, lower "
                "the learning rate or the number of draws that are averaged",
                stacklevel=3,
            )
