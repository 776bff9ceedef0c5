"""Averages over time of numbers that describe the whole gradient, for logging."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class ScalarAverages:
    r"""Bias-corrected averages of mean|g|, var|g|, norm and max|g| of all tensors together.

    ``raw`` holds :math:`\bar x_t = \beta\bar x_{t-1} + (1-\beta)x_t`; :meth:`corrected` divides by
    :math:`1-\beta^t`.

    Args:
        beta: decay.
        device: of the averages.
        first_value: start at the first value (published versions 1.x and 2.x), not at zero.
    """

    def __init__(self, beta: float, device: torch.device, first_value: bool = False) -> None:
        self.beta = beta
        self.first_value = first_value
        self.raw = torch.zeros(4, device=device)
        self.count = torch.zeros(4, device=device)  # of each number: some may not be tracked

    def update(self, values: Tensor) -> None:
        """Average in ``values`` [4], as published: a NaN stays forever."""
        raw = self.beta * self.raw + (1 - self.beta) * values
        self.raw = torch.where(self.count == 0, values, raw) if self.first_value else raw
        self.count = self.count + 1

    def update_raw(self, norm_sq: Tensor, values: Tensor | None) -> None:
        """Average in the norm, or all ``values`` [4]; nothing unless ``norm_sq`` is finite."""
        finite = norm_sq < math.inf
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


def whole_gradient_statistics(grads: Sequence[Tensor | None]) -> Tensor | None:
    """Return mean|g|, unbiased var|g|, norm and max|g| over all elements together [4], float32.

    None without a gradient.  One element has variance 0.
    """
    present = [whole(g) for g in grads if g is not None]
    if not present:
        return None
    device = present[0].device
    sizes = torch.cat([g.abs().flatten().float().to(device) for g in present])
    variance = sizes.var() if sizes.numel() > 1 else sizes.new_zeros(())
    norm = torch.linalg.vector_norm(sizes)
    return torch.stack([sizes.mean(), variance, norm, sizes.max()])


def whole(grad: Tensor) -> Tensor:
    """Return all elements, including those on other ranks; a complex one as two real ones."""
    full = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return torch.view_as_real(full) if full.is_complex() else full
