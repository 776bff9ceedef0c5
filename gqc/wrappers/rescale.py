r"""Give gradients a norm, also where :math:`g^2` is no number in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gqc.gradients import magnitudes, multiply_, total_norm

# Below this norm squares of elements are too small for float32, where there are up to 1e9 of them.
SMALL = 1e-15


def is_usual(norm: float) -> bool:
    """Can a gradient of this norm be rescaled by one factor?"""
    return SMALL < norm < math.inf


def rescale_(grads: Sequence[Tensor], norm: float, target: float) -> None:
    """Give ``grads``, whose norm is ``norm``, together the norm ``target`` in place."""
    if is_usual(norm):
        multiply_(grads, target / norm)
    else:
        rescale_extreme_(grads, target)


def clip_(grads: Sequence[Tensor], limit: float, norm: float | None = None) -> bool:
    """Shrink ``grads``, of norm ``norm`` if it is known, to ``limit``; False where it is within."""
    norm = float(total_norm(grads)) if norm is None else norm
    if not norm > limit:
        return False
    rescale_(grads, norm, limit)
    return True


def rescale_extreme_(grads: Sequence[Tensor], target: float) -> None:
    r"""Give ``grads`` together the norm ``target`` in place, also where :math:`g^2` is no number.

    :math:`g' = s^2 g` with :math:`s` the power of two nearest :math:`1/\sqrt{\max|g|}`, then
    :math:`g'\tau/\|g'\|`.  Twice s, since its square may be out of range too.  A zero gradient
    stays zero.  Three more passes; the host does not wait.
    """
    size = magnitudes(grads).max()
    shrink = torch.where(size > 0, torch.exp2(-(size.log2() / 2).round()), 1.0)
    multiply_(grads, shrink)
    multiply_(grads, shrink)
    norm = total_norm(grads)
    multiply_(grads, torch.where(norm > 0, target / norm, 1.0))
