r"""The four variance estimators that the method's published versions used, exactly as published.

They are kept so that old runs can be resumed and the method's history can be measured; none of them
is the noise-to-signal ratio (:mod:`gqc.scalers.variance`).  With g a tensor's gradient,
m = mean over its elements, and e(x) the bias-corrected average over time:

================== ======== =====================================================================
estimator          versions V of a tensor
================== ======== =====================================================================
``spatial``        1.x      ``e(var|g|) / (max(e(mean|g|)^2, 1e-12) + eps)``, all tensors as one,
                            unbiased variance: how different the layers are
``tensor_spatial`` 2.0.x    ``e(var g) / (max(e(mean|g|)^2, 1e-12) + eps)``, biased variance: how
                            different its elements are; zero for noise that all of them share
``tensor_mean``    3.0      ``(e(m^2) - e(m)^2) / (max(e(m)^2, 1e-12) + eps)``: independent noise
                            averages out of m, so N elements hide it N-fold
``mean_square``    3.1, 3.2 ``(e(mean g^2) - e(m)^2) / (max(e(m)^2, 1e-12) + eps)``: the spread of
                            the elements again, constant gradients score high
================== ======== =====================================================================

V is clipped to [0, 1e6]; a non-finite V and a negative variance count as 0.  Versions 1.x and 2.x
start their averages at the first value and still divide by :math:`1-\beta^t`, so that their V is
about :math:`1-\beta^t` times too small at first.  A NaN gradient stays in the averages forever.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from gqc.gradients import total_norm
from gqc.scalers.checkpoints import VECTORS
from gqc.scalers.variance import Grads, Reading, VarianceEstimator

LARGEST = 1e6  # upper clip of V in all published versions
FLOOR = 1e-12  # lower clip of the squared mean


class PublishedEstimator(VarianceEstimator):
    """State that all published versions share; T-vectors have their checkpoints' names.

    ``raw`` [4] holds averages :math:`\bar x_t = \beta\bar x_{t-1} + (1-\beta)x_t` of mean|g|,
    var|g|, norm and max|g| of all tensors, to log: from zero on, or from the first value
    (``first_value``).
    """

    reads_raw = False
    first_value: ClassVar[bool] = False
    vectors: ClassVar[tuple[str, ...]] = VECTORS

    def __init__(self, params: Sequence[Tensor], settings: Any) -> None:
        super().__init__(params, settings)
        self.eps, self.num_updates = settings.eps, 0
        like: Any = {"device": self._device, "dtype": torch.float32}
        self.raw, self.updates = torch.zeros(2, 4, **like).unbind()
        self.param_grad_mean_ema = torch.zeros(len(params), **like)
        self.param_grad_sq_ema = torch.zeros_like(self.param_grad_mean_ema)

    def update(self, grads: Grads, factor: float = 1.0, tracked: Tensor | None = None) -> bool:
        overall = whole_gradient_statistics(grads)
        if overall is None:
            return False
        raw = self.beta * self.raw + (1 - self.beta) * overall
        self.raw = torch.where(self.updates == 0, overall, raw) if self.first_value else raw
        self.updates = self.updates + 1
        self.num_updates += 1
        if not self.vectors:
            return False
        present, none = self._presence(grads) > 0, (torch.zeros_like(self.raw[0]),) * 2
        pairs = [none if g is None else self.statistic(whole(g).float()) for g in grads]
        for name, column in zip(VECTORS, zip(*pairs, strict=True), strict=True):
            value = torch.stack([x.to(present.device) for x in column])
            old = getattr(self, name)
            new = self.beta * old + (1 - self.beta) * value
            if self.first_value and self.num_updates == 1:
                new = value
            setattr(self, name, torch.where(present, new, old))
        return False

    def read(self, variance_cap: float | None) -> Reading:
        """Return what :class:`VarianceEstimator` says, without the cap, which acts later."""
        num = len(self.param_grad_mean_ema)
        found = torch.cat([self.variances(), self._corrected()]).tolist()
        return Reading(found[:num], [True] * num, [False] * num, found[num:], 0)

    def variances(self) -> Tensor:
        """V of each tensor."""
        if self.num_updates == 0:
            return torch.zeros_like(self.param_grad_mean_ema)
        share = 1 - self.beta**self.num_updates
        first, second = self.param_grad_mean_ema / share, self.param_grad_sq_ema / share
        return _ratio(self.variance(first, second), first, self.eps)

    def _corrected(self) -> Tensor:
        share = -torch.expm1(self.updates * math.log(self.beta))
        return torch.where(self.updates > 0, self.raw / share, 0.0)

    def scalars(self) -> dict[str, Tensor]:
        return {"raw": self.raw.clone(), "count": self.updates.clone()}

    def _vectors(self) -> dict[str, Tensor]:
        averages = {key: getattr(self, key) for key in self.vectors}
        return {**averages, "num_updates": torch.tensor(self.num_updates, device="cpu")}

    def _take(self, vectors: dict[str, Any], scalars: dict[str, Tensor]) -> None:
        self.num_updates = int(vectors["num_updates"])
        raw, updates = (scalars[key].to(self.raw).reshape(4) for key in ("raw", "count"))
        self.raw, self.updates = raw.clone(), updates.clone()

    def variance(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the variance from the bias-corrected averages of :meth:`statistic`."""
        return second - first.square()

    def statistic(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two numbers of one tensor that are averaged over time, each 0-dim."""
        raise NotImplementedError


class TensorSpatial(PublishedEstimator):
    """Versions 2.0 and 2.0.1: spread of the elements of each tensor."""

    name = "tensor_spatial"
    first_value = True

    def statistic(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad.abs().mean(), grad.var(correction=0)

    def variance(self, first: Tensor, second: Tensor) -> Tensor:
        return second


class TensorMean(PublishedEstimator):
    """Version 3.0: variance over time of each tensor's mean."""

    name = "tensor_mean"

    def statistic(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        mean = grad.mean()
        return mean, mean.square()


class MeanSquare(PublishedEstimator):
    """Versions 3.1 and 3.2: mean square over elements and time, less the squared mean."""

    name = "mean_square"

    def statistic(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad.mean(), grad.square().mean()


class Spatial(PublishedEstimator):
    """Versions 1.x: spread of the absolute elements of all tensors together."""

    name = "spatial"
    first_value = True
    vectors = ()  # 1.x files know nothing of single tensors

    def variances(self) -> Tensor:
        mean, variance, *_ = self._corrected()
        return _ratio(variance, mean, self.eps).expand_as(self.param_grad_mean_ema)


def _ratio(variance: Tensor, mean: Tensor, eps: float) -> Tensor:
    value = variance.clamp(min=0) / (mean.square().clamp(min=FLOOR) + eps)
    return torch.where(value.isfinite(), value, 0.0).clamp(0, LARGEST)


def whole_gradient_statistics(grads: Sequence[Tensor | None]) -> Tensor | None:
    """Return mean|g|, unbiased var|g|, norm and max|g| over all elements together [4], float32.

    None without a gradient.  One element has variance 0.
    """
    present = [whole(g) for g in grads if g is not None and g.numel()]
    if not present:
        return None
    sizes = torch.cat([g.abs().flatten().float().to(present[0].device) for g in present])
    variance = sizes.var() if sizes.numel() > 1 else sizes.new_zeros(())
    return torch.stack([sizes.mean(), variance, total_norm([sizes]), sizes.max()])


def whole(grad: Tensor) -> Tensor:
    """Return all elements, including those on other ranks; a complex one as two real ones."""
    full = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return torch.view_as_real(full) if full.is_complex() else full
