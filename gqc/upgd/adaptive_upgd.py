r"""AdaptiveUPGD and UPGDW: UPGD along Adam's direction.

.. math:: w \leftarrow w (1 - \eta\lambda)
    - k\eta\left(\frac{\hat m}{\sqrt{\hat v}+\epsilon} + \xi\right)(1 - s(\hat u))

Source: arXiv:2404.00781 and its released code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Unpack

from torch import Tensor

from gqc.upgd import published, utility
from gqc.upgd.base import UtilityOptimizer
from gqc.upgd.batches import Batch, Block
from gqc.upgd.settings import ADAM, DECAY, Rule, UtilityOptions

__all__ = ["UPGDW", "AdaptiveUPGD"]


class AdaptiveUPGD(UtilityOptimizer):
    r"""UPGD whose direction is Adam's; three floats of state per parameter.

    The direction does not change when all gradients are scaled, so a fixed ``sigma`` is a fixed
    ratio of noise to direction; ``adaptive_noise`` makes the noise follow the scale of the
    gradient, and this ratio with it.

    Args:
        betas: decays of Adam's moments, each in [0, 1); also taken as ``beta1`` and ``beta2``.
        eps: :math:`\epsilon > 0` [gradient].
        others: see :class:`~gqc.upgd.upgd.UPGD`.
    Raises:
        ValueError: a hyperparameter out of its range.
    """

    kept: ClassVar[tuple[str, ...]] = ("avg_utility", "first_moment", "sec_moment")
    rules: ClassVar[dict[str, Rule]] = {"beta_utility": DECAY, **ADAM}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-5,
        weight_decay: float = 0.001,
        beta_utility: float = 0.999,
        sigma: float = 0.001,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        beta1: float | None = None,
        beta2: float | None = None,
        eps: float = 1e-8,
        **options: Unpack[UtilityOptions],
    ) -> None:
        if beta1 is not None or beta2 is not None:
            betas = (betas[0] if beta1 is None else beta1, betas[1] if beta2 is None else beta2)
        own = {"lr": lr, "weight_decay": weight_decay, "sigma": sigma, "betas": betas, "eps": eps}
        super().__init__(params, {**own, "beta_utility": beta_utility}, **options)

    def accumulate(self, batch: Batch, block: Block) -> None:
        maths = published if batch.is_published else utility
        _, first, second = block.kept
        maths.update_moments_(first, second, block.grads, batch.group["betas"])

    def directions(self, batch: Batch, block: Block) -> list[Tensor]:
        maths = published if batch.is_published else utility
        _, first, second = block.kept
        steps = [batch.states[row]["step"] for row in block.rows]
        return maths.adam_directions(first, second, batch.group["betas"], steps, batch.group["eps"])


class UPGDW(AdaptiveUPGD):
    r"""AdaptiveUPGD to put in the place of AdamW, with its names and defaults.

    Decay first, then Adam's direction with noise and gates; the utility's decay is :math:`\beta_2`.

    Args:
        betas: decays of Adam's moments, each in [0, 1); the second is also the utility's.
        others: see :class:`~gqc.upgd.upgd.UPGD`.
    Raises:
        ValueError: a hyperparameter out of its range.

    Source: the method's published drop-in for AdamW, whose state keys it has.
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
        **options: Unpack[UtilityOptions],
    ) -> None:
        super().__init__(params, lr, weight_decay, sigma=sigma, betas=betas, eps=eps, **options)

    def utility_decay(self, group: dict[str, Any]) -> float:
        return float(group["betas"][1])
