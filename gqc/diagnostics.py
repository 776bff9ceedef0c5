r"""What a stream of gradients looks like: angles, expected norms, correlated draws.

A microbatch gradient is :math:`g_i = G + \epsilon_i`, :math:`\mathrm{Cov}\,\epsilon=\Sigma`, and
:math:`R=\mathrm{tr}\,\Sigma/\|G\|^2` its noise scale (:mod:`gqc.noise`).  Nothing here changes a
gradient or decides a step.

Read a microbatch's gradient between ``backward()`` and ``step()`` of a wrapper that has
``accumulate="buffer"`` (with ``"grad"`` the sum of the window is in ``.grad``), :math:`G_n` in a
step-pre-hook of the wrapped optimizer.
"""

import math
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.checks import check_count
from gqc.gradients import CHUNK, is_sharded, local, wide
from gqc.scalers.sketch import SignSketch, real_numel

__all__ = ["DrawCorrelation", "cosine", "momentum_angle"]


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float | None:
    r"""Cosine :math:`\langle a,b\rangle/(\|a\|\|b\|)` of two gradients, each a list of tensors.

    No copy of a gradient is made: products are formed in parts.  In float32 an angle below about
    0.03 degrees cannot be distinguished from 0, at any size: :math:`\arccos(1-2^{-23})`.  Norms are
    summed as the products are, and share their rounding.

    Args:
        a, b: tensors of equal shapes in pairs, any devices and dtypes; ``DTensor`` too.
    Returns: in [-1, 1]; None where one is zero (it has no direction) or not finite.
    Raises: ValueError: lists of different lengths or shapes.  TypeError: a gradient is None.
    """
    a, b = _tensors(a), _tensors(b)
    if [t.shape for t in a] != [t.shape for t in b]:
        raise ValueError(
            f"gradients of shapes {[tuple(t.shape) for t in a]} and "
            f"{[tuple(t.shape) for t in b]}: expected equal ones"
        )
    if not a:
        return None
    with torch.no_grad():
        product, own_a, own_b = torch.stack([_dot(a, b), _dot(a, a), _dot(b, b)]).tolist()
    if not (0 < own_a < math.inf and 0 < own_b < math.inf and math.isfinite(product)):
        return None
    return max(-1.0, min(1.0, product / math.sqrt(own_a) / math.sqrt(own_b)))


@torch.no_grad()
def momentum_angle(optimizer: Optimizer, *, include_gradient: bool = True) -> float | None:
    r"""Angle between the gradient in ``.grad`` and Adam's momentum, in degrees.

    Called before the optimizer's step, m being its ``exp_avg`` after t steps; compares g with

    .. math:: m' = \beta_1 m + (1-\beta_1)\,g \;\text{(the momentum that the step will use), or } m,

    over all parameters that have both.

    Args:
        optimizer: keeps ``exp_avg`` in its state and :math:`\beta_1` in ``group["betas"]`` (Adam,
            AdamW, NAdam, RAdam, Adamax, ...), or a wrapper of one.  Weight decay that Adam adds to
            the gradient is left out of g; under ``maximize`` g is the negative gradient.  Where a
            wrapper sums in ``.grad``, call it from a step-pre-hook of the wrapped optimizer: a sum
            weighs n times too much in :math:`m'`, and so do scaled gradients before ``unscale_``.
        include_gradient: compare with :math:`m'`; False: with :math:`m`, which is independent of
            this gradient's noise.
    Returns: in [0, 180]; None before the first step, or where one of the two is zero or not finite.
        One copy of the gradient for the time of the call with ``include_gradient``.
    Raises: TypeError: the optimizer stepped and kept no ``exp_avg``.
    """
    grads, momenta = [], []
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state.get(param, {})
            if param.grad is None or not state:
                continue
            if "exp_avg" not in state or "betas" not in group:
                raise TypeError(
                    f"{type(optimizer).__name__} keeps no exp_avg and betas: expected an Adam"
                )
            grads.append(-param.grad if group.get("maximize") else param.grad)
            momentum = state["exp_avg"]
            if include_gradient:
                share = 1 - float(group["betas"][0])
                momentum = torch.lerp(momentum, grads[-1].to(momentum.dtype), share)
            momenta.append(momentum)
    similarity = cosine(grads, momenta)
    return None if similarity is None else math.degrees(math.acos(similarity))


def _tensors(grads: Sequence[Tensor]) -> list[Tensor]:
    for index, grad in enumerate(found := [*grads]):
        if not isinstance(grad, Tensor):
            raise TypeError(f"gradient {index} is {grad!r}: expected a tensor, zeros for a None")
    return found


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The sum over all tensors in float64, on the device of the first."""
    dots: list[Any] = []
    for x, y in zip(a, b, strict=True):
        if is_sharded([x, y]):
            product: Any = (x * y.conj()).sum()
            dots.append(product.full_tensor())
            continue
        dtype = wide(torch.promote_types(x.dtype, y.dtype))
        size = CHUNK if x.device.type == "cpu" else 64 * CHUNK
        for piece, other in zip(x.reshape(-1).split(size), y.reshape(-1).split(size), strict=True):
            dots.append((piece.to(dtype) * other.conj()).sum())  # vdot sums in a less exact order
    return torch.stack([dot.real.to(a[0].device) for dot in dots]).sum(dtype=torch.float64)


class ProductSketch:
    """Short vectors whose dot products estimate those of gradients, without bias.

    Args:
        size, seed: of the sketch (:mod:`gqc.scalers.sketch`).
    """

    def __init__(self, size: int = 64, seed: int = 0) -> None:
        self._options = (size, seed)
        self._sketch: SignSketch | None = None

    def __call__(self, grads: Sequence[Tensor]) -> Tensor:
        """Return the vector of one draw; of ``DTensor`` that of this rank's shards.

        Raises: ValueError: tensors of other sizes than before.
        """
        shards = local(_tensors(grads))
        numels = [real_numel(t) for t in shards]
        if self._sketch is None:
            self._numels = numels
            self._sketch = SignSketch(numels, [t.device for t in shards], *self._options)
            self._weight = self._sketch.shares().sqrt().to(shards[0].device)
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
    Attributes: num_draws: draws so far.
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
        products = torch.stack([torch.dot(values, v) for v in pair]).tolist()
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
