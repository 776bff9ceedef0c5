"""Hyperparameters of the UPGD optimizers: what each may be, and their published names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor

from gqc.checks import expect, is_number, plain
from gqc.upgd.utility import NORMALIZATIONS


class UtilityOptions(TypedDict, total=False):
    """The keywords that all share, see :class:`~gqc.upgd.upgd.UPGD`."""

    normalization: str
    scope: str
    protect: bool
    step_scale: float
    adaptive_noise: bool
    noise_reference: str
    noise_beta: float
    min_noise_std: float
    instant_noise_scale: bool
    generator: torch.Generator | None
    nonfinite: str
    foreach: bool | None


Rule = tuple[Callable[[Any], bool], str]
"""Is the value allowed?  And what is, in words."""


def _is_decay(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_two_decays(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_decay, value))


def _is_rate(value: Any) -> bool:
    is_tensor = isinstance(value, Tensor) and value.numel() == 1
    return is_number(float(value) if is_tensor else value) and float(value) >= 0


def _one_of(*allowed: Any) -> Rule:
    return lambda value: any(value is x or value == x for x in allowed), f"one of {allowed}"


NOT_NEGATIVE: Rule = (lambda value: is_number(value) and value >= 0, "a finite number >= 0")
POSITIVE: Rule = (lambda value: is_number(value) and value > 0, "a finite number > 0")
DECAY: Rule = (_is_decay, "a number in [0, 1)")
FLAG: Rule = (lambda value: isinstance(value, bool), "True or False")

SHARED: dict[str, Rule] = {
    "lr": (_is_rate, "a finite number >= 0, or a tensor of one"),
    "weight_decay": NOT_NEGATIVE,
    "sigma": NOT_NEGATIVE,
    "normalization": _one_of(*NORMALIZATIONS),
    "scope": _one_of("global", "local"),
    "protect": FLAG,
    "step_scale": POSITIVE,
    "adaptive_noise": FLAG,
    "noise_reference": _one_of("rms", "norm"),
    "noise_beta": DECAY,
    "min_noise_std": NOT_NEGATIVE,
    "instant_noise_scale": FLAG,
    "foreach": (lambda value: value is None or isinstance(value, bool), "None, True or False"),
}
ADAM: dict[str, Rule] = {
    "betas": (_is_two_decays, "two numbers in [0, 1)"),
    "eps": POSITIVE,  # with 0 a zero gradient would be 0 / 0
}


def checked(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return the hyperparameters among ``values``, numpy's numbers as Python's.

    Raises: ValueError: with name, value and range, unless each is allowed.
    """
    for name, (is_allowed, allowed) in rules.items():
        expect(is_allowed(values[name]), name, values[name], allowed)
    found = {name: plain(values[name]) for name in rules}
    if "betas" in found:
        found["betas"] = tuple(map(plain, found["betas"]))
    return found


def rename_betas(group: dict[str, Any]) -> None:
    """Give a group in the published spelling, ``beta1`` and ``beta2``, its ``betas``."""
    if "beta1" in group or "beta2" in group:
        beta1, beta2 = group.get("betas", (0.9, 0.999))
        group["betas"] = (group.pop("beta1", beta1), group.pop("beta2", beta2))
