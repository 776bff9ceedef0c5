"""Angles between gradients and to Adam's momentum, and the norm that noise gives a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.checks import expect
from gqc.gradients import total_norm, wide


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float | None:
    r"""Cosine :math:`\langle a,b\rangle/(\|a\|\|b\|)` of two gradients, each a list of tensors.

    No copy of a gradient is made (16-bit tensors: one tensor at a time, in float32).  In float32 an
    angle below about 0.03 degrees cannot be distinguished from 0: :math:`\arccos(1-2^{-23})`.

    Args:
        a, b: tensors of equal shapes in pairs, any devices and dtypes; ``DTensor`` too.
    Returns: in [-1, 1]; None where one is zero (it has no direction) or not finite.
    Raises: ValueError: lists of different lengths or shapes.
    """
    if [t.shape for t in a] != [t.shape for t in b]:
        raise ValueError(
            f"gradients of shapes {[tuple(t.shape) for t in a]} and "
            f"{[tuple(t.shape) for t in b]}: expected equal ones"
        )
    if not a:
        return None
    first = a[0].device
    with torch.no_grad():
        dots = torch.stack([_dot(x, y).to(first, torch.float64) for x, y in zip(a, b, strict=True)])
        norms = [total_norm(t).to(first, torch.float64) for t in (a, b)]
        product, size_a, size_b = torch.stack([dots.sum(), *norms]).tolist()
    if not (0 < size_a < math.inf and 0 < size_b < math.inf and math.isfinite(product)):
        return None
    return max(-1.0, min(1.0, product / size_a / size_b))


def momentum_angle(
    optimizer: Optimizer, *, include_gradient: bool = True, bias_corrected: bool = False
) -> float | None:
    r"""Angle between the gradient in ``.grad`` and Adam's momentum, in degrees.

    Called before the optimizer's step, m being its ``exp_avg`` after t steps; compares g with

    .. math:: m' = \beta_1 m + (1-\beta_1)\,g \;\text{(the momentum that the step will use), or } m,

    over all parameters that have both.  :func:`expected_momentum_angle` says what noise gives.

    Args:
        optimizer: keeps ``exp_avg`` in its state and :math:`\beta_1` in ``group["betas"]`` (Adam,
            AdamW, NAdam, RAdam, Adamax, ...), or a wrapper of one.  Weight decay that Adam adds to
            the gradient is left out of g; under ``maximize`` g is the negative gradient.  Where a
            wrapper sums in ``.grad``, call it from a step-pre-hook of the wrapped optimizer: a sum
            weighs n times too much in :math:`m'`, and so do scaled gradients before ``unscale_``.
        include_gradient: compare with :math:`m'`; False: with :math:`m`, which is independent of
            this gradient's noise.
        bias_corrected: divide each parameter's part by :math:`1-\beta_1^t` (of :math:`m'`:
            :math:`t+1`).  It turns the direction only where parameters differ in steps or betas.
    Returns: in [0, 180]; None before the first step, or where one of the two is zero or not finite.
        One copy of the gradient for the time of the call with ``include_gradient`` or a correction.
    Raises: TypeError: the optimizer stepped and kept no ``exp_avg``.
    """
    grads, momenta = [], []
    with torch.no_grad():
        for group in optimizer.param_groups:
            for param in group["params"]:
                state = optimizer.state.get(param, {})
                if param.grad is None or not state:
                    continue
                if "exp_avg" not in state or "betas" not in group:
                    raise TypeError(
                        f"{type(optimizer).__name__} keeps no exp_avg and betas: expected Adam or "
                        "one of its kind"
                    )
                grad = -param.grad if group.get("maximize") else param.grad
                grads.append(grad)
                momenta.append(_momentum(state, grad, group, include_gradient, bias_corrected))
    similarity = cosine(grads, momenta)
    return None if similarity is None else math.degrees(math.acos(similarity))


def expected_momentum_angle(
    noise_scale: float, beta: float, *, include_gradient: bool = True
) -> float:
    r"""The angle that independent noise around a constant gradient gives, in degrees.

    With :math:`\kappa=(1-\beta)/(1+\beta)`, the share of the noise that a long average keeps,

    .. math:: \cos\alpha = \frac{1+(1-\beta)R}{\sqrt{(1+R)(1+\kappa R)}}, \qquad
        \cos\alpha_{\text{without } g} = \frac{1}{\sqrt{(1+R)(1+\kappa R)}}

    to leading order in many dimensions.  Pure noise: :math:`\alpha=\arcsin\beta`, 64.2 degrees at
    0.9 (and 90 without g): an angle near it says that the momentum is mostly noise.

    Args:
        noise_scale: R >= 0; ``math.inf`` for noise alone.
        beta: :math:`\beta_1` in [0, 1).
        include_gradient: as in :func:`momentum_angle`.
    Raises: ValueError: an argument out of its range.
    """
    expect(noise_scale >= 0, "noise_scale", noise_scale, ">= 0")
    expect(0 <= beta < 1, "beta", beta, "in [0, 1)")
    kappa = (1 - beta) / (1 + beta)
    share = (1 - beta) if include_gradient else 0.0
    if math.isinf(noise_scale):
        similarity = share / math.sqrt(kappa)
    else:
        similarity = (1 + share * noise_scale) / math.sqrt(
            (1 + noise_scale) * (1 + kappa * noise_scale)
        )
    return math.degrees(math.acos(min(similarity, 1.0)))


def expected_norm(signal_sq: float, noise_trace: float, num_draws: float) -> float:
    r"""Root mean square of :math:`\|G_n\|`: :math:`\sqrt{\|G\|^2+\mathrm{tr}\,\Sigma/n}`.

    Args:
        signal_sq, noise_trace: :math:`\|G\|^2`, :math:`\mathrm{tr}\,\Sigma` of a microbatch, >= 0.
        num_draws: n > 0.
    Raises: ValueError: an argument out of its range.
    """
    for name, value in (("signal_sq", signal_sq), ("noise_trace", noise_trace)):
        expect(value >= 0, name, value, ">= 0")
    expect(num_draws > 0, "num_draws", num_draws, "> 0")
    return math.sqrt(signal_sq + noise_trace / num_draws)


def _momentum(
    state: dict[str, Any], grad: Tensor, group: dict[str, Any], include: bool, corrected: bool
) -> Tensor:
    beta, momentum = float(group["betas"][0]), state["exp_avg"]
    if include:
        momentum = torch.lerp(momentum, grad.to(momentum.dtype), 1 - beta)
    if corrected:
        momentum = momentum / (1 - beta ** (float(state["step"]) + include))
    return momentum


def _dot(a: Tensor, b: Tensor) -> Tensor:
    if hasattr(a, "full_tensor") or hasattr(b, "full_tensor"):
        product: Any = (a * b).sum()
        return product.full_tensor()
    dtype = wide(torch.promote_types(a.dtype, b.dtype))
    return torch.vdot(a.reshape(-1).to(dtype), b.reshape(-1).to(dtype)).real
