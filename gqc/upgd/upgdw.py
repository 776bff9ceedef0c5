r"""UPGDW: AdaptiveUPGD with the names and defaults of AdamW.

Decay first, then Adam's direction with noise and gates; the utility's decay is :math:`\beta_2`.

Source: the method's published drop-in for AdamW, whose state keys it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch

from gqc.upgd.adaptive_upgd import AdaptiveUPGD
from gqc.upgd.settings import ADAM, Rule

__all__ = ["UPGDW"]


class UPGDW(AdaptiveUPGD):
    r"""AdaptiveUPGD to put in the place of AdamW; three floats of state per parameter.

    Args:
        betas: decays of Adam's moments, each in [0, 1); the second is also the utility's.
        others: see :class:`~gqc.upgd.upgd.UPGD`.
    Raises:
        ValueError: a hyperparameter out of its range.
    """

    kept: ClassVar[tuple[str, ...]] = ("avg_utility", "exp_avg", "exp_avg_sq")
    rules: ClassVar[dict[str, Rule]] = ADAM

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        sigma: float = 0.001,
        *,
        normalization: str = "minmax",
        scope: str = "global",
        protect: bool = True,
        step_scale: float = 1.0,
        adaptive_noise: bool = False,
        noise_reference: str = "rms",
        noise_beta: float = 0.999,
        min_noise_std: float = 1e-6,
        instant_noise_scale: bool = True,
        generator: torch.Generator | None = None,
        nonfinite: str = "raise",
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay,
            sigma=sigma,
            betas=betas,
            eps=eps,
            normalization=normalization,
            scope=scope,
            protect=protect,
            step_scale=step_scale,
            adaptive_noise=adaptive_noise,
            noise_reference=noise_reference,
            noise_beta=noise_beta,
            min_noise_std=min_noise_std,
            instant_noise_scale=instant_noise_scale,
            generator=generator,
            nonfinite=nonfinite,
            foreach=foreach,
        )

    def utility_decay(self, group: dict[str, Any]) -> float:
        return float(group["betas"][1])
