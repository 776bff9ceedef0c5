"""The methods that continual learning compares: plain, decayed, perturbed, protected.

A further method is one entry of `METHODS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gqc_lab.loop.tune import Range, Space

_SGD, _DECAY, _NOISE = Range(0.01, 0.5), Range(1e-4, 3e-2), Range(1e-3, 1e-1)
_GATED = Range(0.02, 1.0)  # a neutral gate is 1/2
_ADAM: Space = {"lr": Range(3e-4, 1e-2), "weight_decay": Range(1e-3, 1.0)}
_ADAM_NOISE: Space = {**_ADAM, "sigma": Range(1e-2, 1.0)}
_UTILITY, _BETAS = ("beta_utility",), ("beta1", "beta2")


@dataclass(frozen=True)
class Method:
    """One way of learning.

    Args:
        optimizer: name of a class in `gqc_lab.studies.continual.training.OPTIMIZERS`.
        space: the settings that it has, and what was tried of each (`gqc_lab.loop.tune`).
        takes: further fields of the config that it takes.
        has_gates: whether it protects weights, and may have adaptive noise.
        options: further arguments of the optimizer.
    """

    optimizer: str
    space: Space
    takes: tuple[str, ...] = ()
    has_gates: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


METHODS = {
    "sgd": Method("SGD", {"lr": _SGD}),
    "l2": Method("SGD", {"lr": _SGD, "weight_decay": _DECAY}),
    "pgd": Method("PerturbedSGD", {"lr": _SGD, "sigma": _NOISE}),
    "shrink_perturb": Method("PerturbedSGD", {"lr": _SGD, "weight_decay": _DECAY, "sigma": _NOISE}),
    "adamw": Method("AdamW", _ADAM, _BETAS),
    "upgd": Method("UPGD", {"lr": _GATED, "weight_decay": _DECAY, "sigma": _NOISE}, _UTILITY, True),
    "upgd_nonprotecting": Method(
        "UPGD",
        {"lr": _SGD, "weight_decay": _DECAY, "sigma": _NOISE},
        _UTILITY,
        True,
        options={"protect": False},
    ),
    "adaptive_upgd": Method("AdaptiveUPGD", _ADAM_NOISE, (*_UTILITY, *_BETAS), True),
    "upgdw": Method("UPGDW", _ADAM_NOISE, _BETAS, True),
}
