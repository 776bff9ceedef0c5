r"""Normalizations as released, with the operations in their order, so that bits agree.

==================== =============================================================================
``max_published``    :math:`s = \sigma(\hat u / \max u)`, the authors' code
``minmax_published`` :math:`s = \sigma(2(z-\frac12))`,
                     :math:`z = (\hat u-\min u)/(\max u-\min u+10^{-8})` in [0, 1], a later fix
==================== =============================================================================

Both divide the bias-corrected :math:`\hat u = u/(1-\beta^t)` by extrema of the **uncorrected** u:
with :math:`\beta=0.999` the quotient is 1000 times too large at first, and falls only slowly.

The functions have the signatures and meanings of those of :mod:`gqc.upgd.utility`, which round
elsewhere to save passes over memory.  One departure: where the largest utility is 0, 0 / 0 counts
as 0 (gate 1/2), where the authors' code makes the weight NaN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gqc.upgd.utility import Bounds, corrections, scale


def accumulate_utility_(
    utilities: list[Tensor], grads: list[Tensor], params: list[Tensor], beta: float
) -> None:
    torch._foreach_mul_(utilities, beta)
    torch._foreach_add_(utilities, torch._foreach_mul(grads, params), alpha=beta - 1)


def gates(
    utilities: list[Tensor],
    correction: list[float],
    limits: Bounds | list[Bounds] | None,
    normalization: str,
) -> list[Tensor]:
    """See the module.

    Args:
        correction: :math:`1-\beta^t` of each.
    """
    scaled = scale(utilities, correction, limits)
    if normalization == "minmax_published":
        torch._foreach_clamp_min_(scaled, 0.0)
        torch._foreach_clamp_max_(scaled, 1.0)
        torch._foreach_sub_(scaled, 0.5)
        torch._foreach_mul_(scaled, 2.0)
    torch._foreach_sigmoid_(scaled)
    torch._foreach_neg_(scaled)
    torch._foreach_add_(scaled, 1.0)
    return scaled


def update_moments_(
    first: list[Tensor], second: list[Tensor], grads: list[Tensor], betas: Sequence[float]
) -> None:
    torch._foreach_mul_(first, betas[0])
    torch._foreach_add_(first, grads, alpha=1 - betas[0])
    torch._foreach_mul_(second, betas[1])
    torch._foreach_add_(second, torch._foreach_mul(grads, grads), alpha=1 - betas[1])


def adam_directions(
    first: list[Tensor],
    second: list[Tensor],
    betas: Sequence[float],
    steps: Sequence[int],
    eps: float,
) -> list[Tensor]:
    directions = list(torch._foreach_div(first, corrections(betas[0], steps)))
    denominators = list(torch._foreach_div(second, corrections(betas[1], steps)))
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, eps)
    torch._foreach_div_(directions, denominators)
    return directions


def update_(
    params: list[Tensor],
    directions: list[Tensor],
    noise: list[Tensor] | None,
    gate: list[Tensor],
    *,
    protect: bool,
    decay: float,
    rate: float,
) -> None:
    steps = gate if protect or noise is not None else directions
    if noise is not None and protect:
        torch._foreach_add_(noise, directions)
    if steps is gate:
        torch._foreach_mul_(gate, noise or directions)
    if noise is not None and not protect:
        torch._foreach_add_(gate, directions)
    torch._foreach_mul_(params, decay)
    torch._foreach_add_(params, steps, alpha=-rate)
