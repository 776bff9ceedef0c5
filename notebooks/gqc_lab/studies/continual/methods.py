r"""The methods that continual learning compares: plain, decayed, perturbed, protected.

A further method is one function and one line in `METHODS`, and its ranges in
``continual_tuning.SPACES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from gqc.upgd import UPGD, UPGDW, AdaptiveUPGD

if TYPE_CHECKING:
    from gqc_lab.studies.continual.settings import ContinualConfig

__all__ = ["METHODS", "NOISY", "PerturbedSGD", "make_optimizer"]


class PerturbedSGD(Optimizer):
    r"""SGD with noise on every weight alike: :math:`w \leftarrow w(1-\eta\lambda)-\eta(g+\xi)`.

    With ``weight_decay`` 0 it is perturbed gradient descent, with both online shrink and perturb.
    What UPGD does without its gates, and without the factor 1/2 of a neutral one.

    Args:
        params: parameters or groups.
        lr: :math:`\eta > 0`.
        weight_decay: :math:`\lambda \ge 0`.
        sigma: deviation of :math:`\xi`, >= 0 [gradient].
        generator: of the noise, on the CPU; whoever passes it saves it.
    Raises:
        ValueError: a hyperparameter out of its range.
    Source: Ash and Adams 2020, arXiv:1910.08475; as an online method, the controls of
        arXiv:2404.00781.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        sigma: float = 0.0,
        *,
        generator: torch.Generator,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr={lr!r}: expected a number above 0")
        for name, value in (("weight_decay", weight_decay), ("sigma", sigma)):
            if not value >= 0:
                raise ValueError(f"{name}={value!r}: expected a number of at least 0")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "sigma": sigma})
        self._generator = generator

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; returns what ``closure`` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            directions = [p.grad for p in params if p.grad is not None]
            if group["sigma"] > 0:
                noise = self._noise(params, group["sigma"])
                directions = list(torch._foreach_add(directions, noise))
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, directions, alpha=-group["lr"])
        return loss

    def _noise(self, params: list[Tensor], sigma: float) -> list[Tensor]:
        numels = [p.numel() for p in params]
        flat = torch.empty(sum(numels)).normal_(0.0, sigma, generator=self._generator)
        flat = flat.to(params[0].device, params[0].dtype)
        return [x.view(p.shape) for x, p in zip(flat.split(numels), params, strict=True)]


Parameters = Iterable[torch.nn.Parameter]
Make = Callable[[Parameters, "ContinualConfig", torch.Generator], Optimizer]


def _sgd(params: Parameters, c: ContinualConfig, generator: torch.Generator) -> Optimizer:
    return SGD(params, c.lr)


def _l2(params: Parameters, c: ContinualConfig, generator: torch.Generator) -> Optimizer:
    return SGD(params, c.lr, weight_decay=c.weight_decay)


def _pgd(params: Parameters, c: ContinualConfig, generator: torch.Generator) -> Optimizer:
    return PerturbedSGD(params, c.lr, 0.0, c.sigma, generator=generator)


def _shrink_perturb(
    params: Parameters, c: ContinualConfig, generator: torch.Generator
) -> Optimizer:
    return PerturbedSGD(params, c.lr, c.weight_decay, c.sigma, generator=generator)


def _adamw(params: Parameters, c: ContinualConfig, generator: torch.Generator) -> Optimizer:
    return AdamW(params, c.lr, betas=(c.beta1, c.beta2), weight_decay=c.weight_decay)


def _upgd(params: Parameters, c: ContinualConfig, generator: torch.Generator) -> Optimizer:
    return UPGD(params, c.lr, beta_utility=c.beta_utility, **_gated(c, generator))


def _upgd_nonprotecting(
    params: Parameters, c: ContinualConfig, generator: torch.Generator
) -> Optimizer:
    options = _gated(c, generator)
    return UPGD(params, c.lr, beta_utility=c.beta_utility, protect=False, **options)


def _adaptive_upgd(params: Parameters, c: ContinualConfig, generator: torch.Generator) -> Optimizer:
    betas, options = (c.beta1, c.beta2), _gated(c, generator)
    return AdaptiveUPGD(params, c.lr, beta_utility=c.beta_utility, betas=betas, **options)


def _upgdw(params: Parameters, c: ContinualConfig, generator: torch.Generator) -> Optimizer:
    return UPGDW(params, c.lr, betas=(c.beta1, c.beta2), **_gated(c, generator))


def _gated(c: ContinualConfig, generator: torch.Generator) -> dict[str, Any]:
    return {
        "weight_decay": c.weight_decay,
        "sigma": c.sigma,
        "normalization": c.normalization,
        "adaptive_noise": c.adaptive_noise,
        "generator": generator,
        "nonfinite": "skip",  # a run that diverged ends as the others do, and is counted
    }


#: method -> its optimizer
METHODS: dict[str, Make] = {
    "sgd": _sgd,
    "l2": _l2,
    "pgd": _pgd,
    "shrink_perturb": _shrink_perturb,
    "adamw": _adamw,
    "upgd": _upgd,
    "upgd_nonprotecting": _upgd_nonprotecting,
    "adaptive_upgd": _adaptive_upgd,
    "upgdw": _upgdw,
}

#: methods with noise, and those of them with gates
NOISY = ("pgd", "shrink_perturb", "upgd", "upgd_nonprotecting", "adaptive_upgd", "upgdw")
GATED = NOISY[2:]


def make_optimizer(
    params: Parameters, config: ContinualConfig, generator: torch.Generator
) -> Optimizer:
    """The optimizer of that config's method.

    Args:
        generator: of the noise, where the method has any.
    """
    return METHODS[config.method](params, config, generator)
