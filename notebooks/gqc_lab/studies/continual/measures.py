r"""What a network that keeps learning loses: plasticity, active units, rank; and its noise.

Pure functions; `gqc_lab.studies.continual.training` says when they are taken.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gqc.upgd import AdaptiveUPGD, utility

DIGITS = 6  #: of a rank: LAPACK's last bits differ from call to call, and a resumed run's may not


def plasticity(before: Tensor, after: Tensor, eps: float = 1e-8) -> Tensor:
    r"""Return the share of its loss that a step took off each example, in [0, 1].

    .. math:: \max\left(1 - \frac{L(w_{t+1})}{\max(L(w_t), \epsilon)},\; 0\right)

    Source: arXiv:2404.00781, section 4.
    """
    return (1 - after / before.clamp_min(eps)).clamp_min(0.0)


@torch.no_grad()
def hidden_activations(model: nn.Sequential, images: Tensor) -> list[Tensor]:
    """Return the outputs of each hidden layer after its ReLU [examples, width]."""
    outputs = [images]
    for part in list(model)[:-1]:
        outputs.append(part(outputs[-1]))
    return outputs[2::2]


def dead_share(activations: Sequence[Tensor]) -> float:
    """Return the share of all units that are 0 on every example; NaN without hidden layers."""
    dead = [(layer == 0).all(0) for layer in activations]
    return torch.cat(dead).double().mean().item() if dead else float("nan")


def effective_rank(matrix: Tensor) -> float:
    r"""Return the exponential of the entropy of the singular values, to six digits.

    :math:`\exp(-\sum_i p_i \ln p_i)`, :math:`p_i = s_i / \sum_j s_j`.

    Source: Roy and Vetterli 2007, "The effective rank".
    """
    matrix = matrix.detach().double().cpu()
    if not matrix.isfinite().all():  # LAPACK would raise
        return float("nan")
    values = torch.linalg.svdvals(matrix)
    if not values.sum() > 0:
        return 0.0
    p = values / values.sum()
    return float(f"{torch.special.entr(p).sum().exp().item():.{DIGITS}g}")


def weight_norm(model: nn.Module) -> float:
    """Return the L2 norm of all parameters."""
    norms = torch._foreach_norm([p.detach() for p in model.parameters()])
    return torch.stack(norms).double().norm().item()


def noise_to_signal(optimizer: Optimizer, norms: Sequence[Tensor]) -> float | None:
    r"""Return the expected norm of the noise over that of the direction that it is added to.

    :math:`\sqrt{\sum_i \sigma_i^2 N_i} / \|d\|` over tensors i of :math:`N_i` elements; d is the
    gradient, or Adam's direction in the last step.  Gates are left out: they act on both.

    Args:
        optimizer: after a step.
        norms: of each parameter's gradient, as the optimizer got it.
    Returns: None for an optimizer without noise.
    """
    signal, noise = 0.0, 0.0
    left = list(norms)
    for group in optimizer.param_groups:
        if "sigma" not in group:
            return None
        params = [p for p in group["params"] if p.requires_grad]
        mine, left = left[: len(params)], left[len(params) :]
        for p, std in zip(params, _deviations(group, params, mine), strict=True):
            noise += std**2 * p.numel()
        directions = mine
        if isinstance(optimizer, AdaptiveUPGD):
            states = [optimizer.state[p] for p in params]
            m, v, steps = ([s[name] for s in states] for name in (*optimizer.kept[1:], "step"))
            moved = utility.adam_directions(m, v, group["betas"], steps, group["eps"])
            directions = [direction.norm() for direction in moved]
        signal += sum(float(norm) ** 2 for norm in directions)
    return (noise / signal) ** 0.5 if signal > 0 else float("inf")


def _deviations(
    group: Mapping[str, Any], params: Sequence[Tensor], norms: Sequence[Tensor]
) -> list[float]:
    if not group.get("adaptive_noise", False):
        return [float(group["sigma"])] * len(params)
    numels = [p.numel() for p in params]
    reference, floor = group["noise_reference"], group["min_noise_std"]
    stds = utility.noise_stds(list(norms), numels, group["sigma"], reference, floor)
    return [float(std) for std in stds]
