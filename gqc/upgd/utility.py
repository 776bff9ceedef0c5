r"""The maths of UPGD (:mod:`gqc.upgd.upgd`) on lists of tensors: utilities, gates, noise, update.

The utility is first-order: how much the loss would rise if the weight were zero, in loss units.  A
weight of high utility has a scaled utility s near its upper end, and so a small gate 1 - s.

Every function works on parallel lists with torch's ``_foreach`` kernels and never waits for the
host: extrema stay tensors.  :func:`blocks` cuts long lists into parts that fit the CPU's cache, so
that an operation finds there what the one before it wrote.

Two normalizations are as released, with the operations in their order, so that bits agree
(``is_published``); the others round elsewhere to save passes over memory:

==================== =============================================================================
``max_published``    :math:`s = \sigma(\hat u / \max u)`, the authors' code
``minmax_published`` :math:`s = \sigma(2(z-\frac12))`,
                     :math:`z = (\hat u-\min u)/(\max u-\min u+10^{-8})` in [0, 1], a later fix
==================== =============================================================================

Both divide the bias-corrected :math:`\hat u = u/(1-\beta^t)` by extrema of the **uncorrected** u:
with :math:`\beta=0.999` the quotient is 1000 times too large at first, and falls only slowly.  One
departure: where the largest utility is 0, 0 / 0 counts as 0 (gate 1/2), where the authors' code
makes the weight NaN.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

NORMALIZATIONS = ("minmax", "max", "minmax_published", "max_published")

#: elements of a block on the CPU, 1 MB of float32 an operand: below 2**16 the calls cost as much as
#: the arithmetic, above 2**20 the operands leave the cache
BLOCK = 2**18

#: elements of a tensor up to which torch's operations stay on the thread that calls them
SERIAL = 2**15


class Bounds(NamedTuple):
    """What is subtracted from utilities, and what the rest is divided by; of any shape."""

    shift: Tensor | None
    scale: Tensor


Tensors = list[Tensor]
Limits = Bounds | list[Bounds] | None  #: for all, or of each


def blocks(
    columns: Sequence[Tensors], size: int, *, piece: int | None, is_split: bool
) -> Iterator[list[tuple[Any, ...]]]:
    """Parallel lists of tensors, a cache-sized part of them at a time.

    Args:
        columns: lists of equal length; the tensors of a row have equal shapes.
        size: most elements of a block; a row that stays whole may have more.
        piece: most elements of a tensor in a block, which changes nothing of where blocks begin and
            end.  None: ``size``.
        is_split: cut larger contiguous tensors into flat pieces (views).
    Yields: for each piece the row number, and the piece of each column.
    """
    block: list[tuple[Any, ...]] = []
    filled, piece = 0, min(piece or size, size)
    for row, tensors in enumerate(zip(*columns, strict=True)):
        is_large = is_split and tensors[0].numel() > piece
        is_cut = is_large and all(t.is_contiguous() for t in tensors)
        for chunk in _cut(tensors, size) if is_cut else [tensors]:
            numel = chunk[0].numel()
            if block and filled + numel > size:
                yield block
                block, filled = [], 0
            filled += numel
            block += [(row, *pieces) for pieces in (_cut(chunk, piece) if is_cut else [chunk])]
    if block:
        yield block


def _cut(tensors: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    """Contiguous tensors of one size as flat pieces of at most ``size`` elements."""
    if tensors[0].numel() <= size:
        return [tensors]
    return list(zip(*(t.view(-1).split(size) for t in tensors), strict=True))


def corrections(beta: float, steps: Sequence[int]) -> list[float]:
    r"""Bias corrections :math:`1-\beta^t` of averages that started from 0."""
    return [1 - beta**step for step in steps]


def accumulate_utility_(
    utilities: Tensors, grads: Tensors, params: Tensors, beta: float, *, is_published: bool
) -> None:
    r""":math:`u \leftarrow \beta u - (1-\beta) g w` in place, u in units of the loss."""
    torch._foreach_mul_(utilities, beta)
    if is_published:
        torch._foreach_add_(utilities, torch._foreach_mul(grads, params), alpha=beta - 1)
    else:
        torch._foreach_addcmul_(utilities, grads, params, value=beta - 1)


def bounds(low: Tensor, high: Tensor, normalization: str) -> Bounds:
    r"""Shift and scale of a normalization from the extrema, never a scale of 0.

    ``"minmax"``: centre and half the range, so that the quotient is :math:`2(z-\frac12)` without
    forming z; ``"minmax_published"``: minimum and range + 1e-8; ``"max"``, ``"max_published"``: no
    shift, and the maximum.  Extrema are of :math:`\hat u`, of u for the published ones; any shape.
    """
    if normalization == "minmax":
        half = high / 2 - low / 2  # high - low may overflow
        return Bounds(low / 2 + high / 2, half.masked_fill(half == 0, 1.0))  # 0 / 1: gate 1/2
    if normalization == "minmax_published":
        return Bounds(low, high - low + 1e-8)
    # Below a maximum of 0 quotients are -inf with tiny too, but 0 / tiny = 0 where 0 / 0 is NaN.
    return Bounds(None, high.masked_fill(high == 0, torch.finfo(high.dtype).tiny))


def gates(
    utilities: Tensors, correction: list[float], limits: Limits, normalization: str
) -> Tensors:
    r"""New gates :math:`1 - s(\hat u)`, near 1 for weights that may move, smaller to protect them.

    Args:
        utilities: u.
        correction: what gives :math:`\hat u` when u is divided by it, up to a factor that the
            extrema have too.
        limits: of all, or of each of ``utilities``, see :func:`bounds`.  None: s is
            :math:`\sigma` of :math:`\hat u` over its L2 norm along the last dimension, at least
            1e-12, as in the authors' local variants.
    """
    tensors = utilities
    if any(factor != 1 for factor in correction):
        tensors = list(torch._foreach_div(utilities, correction))
    if limits is None:
        gate = [normalize(x, dim=-1) for x in tensors]
    elif isinstance(limits, list):
        shifts = [limit.shift for limit in limits if limit.shift is not None]
        shifted = list(torch._foreach_sub(tensors, shifts)) if shifts else tensors
        gate = list(torch._foreach_div(shifted, [limit.scale for limit in limits]))
    elif limits.shift is None:
        gate = list(torch._foreach_div(tensors, limits.scale))
    else:
        gate = list(torch._foreach_add(tensors, limits.shift, alpha=-1))
        torch._foreach_div_(gate, limits.scale)
    if normalization == "minmax_published":
        torch._foreach_clamp_min_(gate, 0.0)
        torch._foreach_clamp_max_(gate, 1.0)
        torch._foreach_sub_(gate, 0.5)
        torch._foreach_mul_(gate, 2.0)
    if normalization.endswith("_published"):
        torch._foreach_sigmoid_(gate)
        torch._foreach_neg_(gate)
        torch._foreach_add_(gate, 1.0)
        return gate
    torch._foreach_neg_(gate)
    torch._foreach_sigmoid_(gate)  # 1 - sigmoid(x) = sigmoid(-x)
    return gate


def update_moments_(
    first: Tensors, second: Tensors, grads: Tensors, betas: Sequence[float], *, is_published: bool
) -> None:
    r"""Adam's :math:`m \leftarrow \beta_1 m + (1-\beta_1) g` and v with :math:`g^2`, in place."""
    if is_published:
        torch._foreach_mul_(first, betas[0])
        torch._foreach_add_(first, grads, alpha=1 - betas[0])
        torch._foreach_mul_(second, betas[1])
        torch._foreach_add_(second, torch._foreach_mul(grads, grads), alpha=1 - betas[1])
        return
    torch._foreach_lerp_(first, grads, 1 - betas[0])
    torch._foreach_mul_(second, betas[1])
    torch._foreach_addcmul_(second, grads, grads, value=1 - betas[1])


def adam_directions(
    first: Tensors,
    second: Tensors,
    betas: Sequence[float],
    steps: Sequence[int],
    eps: float,
    *,
    is_published: bool = False,
) -> Tensors:
    r"""Adam's :math:`\hat m / (\sqrt{\hat v} + \epsilon)` at the ``steps`` t, new tensors."""
    factors1, factors2 = corrections(betas[0], steps), corrections(betas[1], steps)
    if is_published:
        directions = list(torch._foreach_div(first, factors1))
        denominators = list(torch._foreach_div(second, factors2))
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, eps)
        torch._foreach_div_(directions, denominators)
        return directions
    # the correction of m goes into the denominator, which saves a pass
    denominators = list(torch._foreach_sqrt(second))
    ratios = [c1 / math.sqrt(c2) for c1, c2 in zip(factors1, factors2, strict=True)]
    torch._foreach_mul_(denominators, ratios)
    torch._foreach_add_(denominators, [eps * c1 for c1 in factors1])
    return list(torch._foreach_div(first, denominators))


def noise_stds(
    norms: Tensors, numels: Sequence[int], sigma: float, reference: str, floor: float
) -> Tensors:
    r"""Standard deviation of each tensor's noise relative to its gradient.

    :math:`\max(\sigma\|g\|/\sqrt N, \mathrm{floor})` for ``reference="rms"``; ``"norm"`` leaves out
    :math:`\sqrt N`, so that the noise-to-signal ratio is :math:`\sigma\sqrt N`, as published.  The
    ``norms`` :math:`\|g\|`, or their averages, are 0-dim, as is what is returned.
    """
    stds = list(torch._foreach_mul(norms, sigma))
    if reference == "rms":
        torch._foreach_div_(stds, [math.sqrt(numel) for numel in numels])
    torch._foreach_clamp_min_(stds, floor)
    return stds


def noise_streams(generator: torch.Generator) -> Iterator[torch.Generator]:
    """A CPU generator for each block, as threads cannot share one; ``generator`` draws the seeds.

    A seed has 32 bits, which is what the generator takes of it.
    """
    while True:
        seed = torch.randint(2**32, (), generator=generator, device=generator.device)
        yield torch.Generator().manual_seed(int(seed))


def draw_noise(like: Tensors, std: float | Tensors, generator: torch.Generator) -> Tensors:
    """Gaussian numbers in the shapes of ``like``, of deviation ``std``, or of one for each.

    One draw for all: one a tensor costs more.
    """
    numels = [t.numel() for t in like]
    flat = torch.empty(sum(numels), dtype=like[0].dtype, device=like[0].device)
    flat.normal_(0.0, 1.0 if isinstance(std, list) else std, generator=generator)
    noise = [n.view(t.shape) for n, t in zip(flat.split(numels), like, strict=True)]
    if isinstance(std, list):
        torch._foreach_mul_(noise, std)
    return noise


def update_(
    params: Tensors,
    directions: Tensors,
    noise: Tensors | None,
    gate: Tensors,
    *,
    protect: bool,
    decay: float,
    rate: float,
    is_published: bool,
) -> None:
    r""":math:`w \leftarrow \mathrm{decay}\, w - \mathrm{rate}\,(d+\xi)\,\mathrm{gate}`, in place.

    Not ``protect``: gates the noise only, :math:`d + \xi\,\mathrm{gate}`.  The noise :math:`\xi`,
    None for none, and ``gate`` are overwritten.
    """
    if protect and noise is not None:
        torch._foreach_add_(noise, directions)
    gated = noise or directions if protect else noise
    if decay != 1:
        torch._foreach_mul_(params, decay)
    if is_published:  # the whole step is formed before it is taken
        if gated is not None:
            torch._foreach_mul_(gate, gated)
            if not protect:
                torch._foreach_add_(gate, directions)
        torch._foreach_add_(params, directions if gated is None else gate, alpha=-rate)
        return
    if not protect:
        torch._foreach_add_(params, directions, alpha=-rate)
    if gated is not None:
        torch._foreach_addcmul_(params, gate, gated, value=-rate)
