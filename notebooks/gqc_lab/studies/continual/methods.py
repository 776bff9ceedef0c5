r"""The methods that continual learning compares: plain, decayed, perturbed, protected.

A further method is one entry of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from gqc.upgd import UPGD, UPGDW, AdaptiveUPGD
from gqc_lab.loop.tune import Range, Space

__all__ = ["METHODS", "Method", "PerturbedSGD", "make_optimizer"]


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
        """Move every parameter that has a gradient, and return what ``closure`` returned."""
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
Config = Any  #: a `ContinualConfig`, whose module imports this one
Make = Callable[[Parameters, Config, torch.Generator], Optimizer]

_SGD, _DECAY, _NOISE = Range(0.01, 0.5), Range(1e-4, 3e-2), Range(1e-3, 1e-1)
_ADAM: Space = {"lr": Range(3e-4, 1e-2), "weight_decay": Range(1e-3, 1.0)}
_GATED = Range(0.02, 1.0)  # a neutral gate is 1/2


@dataclass(frozen=True)
class Method:
    """One way of learning.

    Args:
        make: its optimizer, from parameters, config and the generator of the noise.
        space: the settings that it has, and what was tried of each (`gqc_lab.loop.tune`).
        has_gates: whether it protects weights, and may have adaptive noise.
        place: of its colour and dash in every figure; None: what is left.
    """

    make: Make
    space: Space
    has_gates: bool = False
    place: int | None = None

    def takes(self, name: str) -> bool:
        """Does it have a setting of that name: ``sigma``, ``weight_decay``?"""
        return name in self.space


def _upgd(kind: type[Optimizer], *names: str, **options: Any) -> Make:
    """Return the maker of an optimizer with gates; ``names``: what else it takes of the config."""

    def make(params: Parameters, c: Config, generator: torch.Generator) -> Optimizer:
        own: dict[str, Any] = {name: getattr(c, name) for name in names if name != "betas"}
        own |= {"betas": (c.beta1, c.beta2)} if "betas" in names else {}
        own |= {"weight_decay": c.weight_decay, "sigma": c.sigma, "generator": generator}
        own |= {"normalization": c.normalization, "adaptive_noise": c.adaptive_noise}
        own["nonfinite"] = "skip"  # a run that diverged ends as the others do, and is counted
        return kind(params, c.lr, **own, **options)

    return make


METHODS = {
    "sgd": Method(lambda params, c, _: SGD(params, c.lr), {"lr": _SGD}, place=0),
    "l2": Method(
        lambda params, c, _: SGD(params, c.lr, weight_decay=c.weight_decay),
        {"lr": _SGD, "weight_decay": _DECAY},
    ),
    "pgd": Method(
        lambda params, c, noise: PerturbedSGD(params, c.lr, 0.0, c.sigma, generator=noise),
        {"lr": _SGD, "sigma": _NOISE},
    ),
    "shrink_perturb": Method(
        lambda params, c, noise: PerturbedSGD(
            params, c.lr, c.weight_decay, c.sigma, generator=noise
        ),
        {"lr": _SGD, "weight_decay": _DECAY, "sigma": _NOISE},
        place=2,
    ),
    "adamw": Method(
        lambda params, c, _: AdamW(
            params, c.lr, betas=(c.beta1, c.beta2), weight_decay=c.weight_decay
        ),
        _ADAM,
        place=1,
    ),
    "upgd": Method(
        _upgd(UPGD, "beta_utility"),
        {"lr": _GATED, "weight_decay": _DECAY, "sigma": _NOISE},
        True,
        place=3,
    ),
    "upgd_nonprotecting": Method(
        _upgd(UPGD, "beta_utility", protect=False),
        {"lr": _SGD, "weight_decay": _DECAY, "sigma": _NOISE},
        True,
    ),
    "adaptive_upgd": Method(
        _upgd(AdaptiveUPGD, "beta_utility", "betas"), {**_ADAM, "sigma": Range(1e-2, 1.0)}, True
    ),
    "upgdw": Method(_upgd(UPGDW, "betas"), {**_ADAM, "sigma": Range(1e-2, 1.0)}, True),
}


def make_optimizer(params: Parameters, config: Config, generator: torch.Generator) -> Optimizer:
    """Return the optimizer of that config's method.

    Args:
        generator: of the noise, where the method has any.
    """
    return METHODS[config.method].make(params, config, generator)
