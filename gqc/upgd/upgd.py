r"""UPGD: perturb the weights that are of little use, protect those that are of much.

.. math::

    u &\leftarrow \beta u - (1-\beta)\, g w, \qquad \hat u = u / (1-\beta^t) \\
    w &\leftarrow w (1 - \eta\lambda) - k\eta\,(d + \xi)\,(1 - s(\hat u)), \quad
        \xi \sim N(0, \sigma^2)

with d the gradient (UPGD) or Adam's :math:`\hat m/(\sqrt{\hat v}+\epsilon)` (AdaptiveUPGD, UPGDW).

Source: Elsayed and Mahmood, Addressing Loss of Plasticity and Catastrophic Forgetting in Continual
Learning, ICLR 2024, arXiv:2404.00781, and its released code.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Unpack

from torch import Tensor

from gqc.upgd import utility
from gqc.upgd.base import Batch, Block, UtilityOptimizer
from gqc.upgd.checkpoints import ADAM, DECAY, SHARED, Rule, UtilityOptions


class UPGD(UtilityOptimizer):
    r"""Utility-based perturbed gradient descent.

    With ``sigma=0`` and equal utilities a step is that of SGD with ``step_scale * lr / 2``.  One
    float of state per parameter (float32 for 16-bit ones).  Weight decay is decoupled.

    Args:
        params: parameters, or group dicts that may override each hyperparameter.
        lr: :math:`\eta \ge 0`; may be a tensor of one, which is read at each step.
        weight_decay: :math:`\lambda \ge 0`.
        beta_utility: :math:`\beta` in [0, 1), decay of the utility.
        sigma: :math:`\sigma \ge 0`, standard deviation of the noise [gradient]; with
            ``adaptive_noise`` the ratio of noise to gradient.
        normalization: how s scales utilities, see :func:`gqc.upgd.utility.gates`.  ``"minmax"``
            keeps gates in [0.2689, 0.7311] whatever their sign.  ``"max"`` (the paper's) protects
            the useless weights where the largest utility is negative.  ``"max_published"`` and
            ``"minmax_published"`` are as in released code, where bounds lack the bias correction
            that utilities have: gates then sit at the ends of their range for about
            :math:`1/(1-\beta)` steps.
        scope: extrema over all parameters with a gradient (``"global"``) or each tensor's own
            (``"local"``; for ``"max"`` its L2 norm along the last dimension, as in released code).
        protect: False gates the noise only, not the gradient.
        step_scale: k > 0: 1 in the authors' experiments, 2 in their README, where a neutral gate of
            1/2 makes it plain SGD.
        adaptive_noise: let the noise follow the gradient of its tensor, so that scaling gradients
            leaves their ratio as it is.
        noise_reference: ``"rms"``: :math:`\sigma\|g\|/\sqrt N`; ``"norm"``: :math:`\sigma\|g\|`, as
            in released code, whose ratio grows with the tensor.
        noise_beta: decay in [0, 1) of the average of :math:`\|g\|`.
        min_noise_std: least standard deviation of adaptive noise, >= 0; also where ``sigma`` is 0.
        instant_noise_scale: follow the present gradient rather than the average.
        generator: where the noise comes from; saved in ``state_dict``.  Parameters on other devices
            get one of the same seed.  None: a constant seed, so that two optimizers draw the same
            noise; the global stream is never touched.  Of the same seed on all ranks of DDP.
        nonfinite: on a NaN or infinite gradient ``"raise"`` ValueError, ``"skip"`` the step
            (counted in ``num_skipped``), or ``"ignore"``: do not look, nor ever wait for the host.
        foreach: None or True: on the CPU, cache-sized blocks, whose noise threads draw side by
            side; it does not depend on their number.  False: one tensor at a time; noise is then
            another.
    Raises: ValueError: a hyperparameter out of its range.
    """

    rules: ClassVar[dict[str, Rule]] = {**SHARED, "beta_utility": DECAY}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-5,
        weight_decay: float = 0.001,
        beta_utility: float = 0.999,
        sigma: float = 0.001,
        **options: Unpack[UtilityOptions],
    ) -> None:
        own = {"lr": lr, "weight_decay": weight_decay, "sigma": sigma}
        super().__init__(params, {**own, "beta_utility": beta_utility}, **options)


class AdaptiveUPGD(UtilityOptimizer):
    r"""UPGD whose direction is Adam's; three floats of state per parameter.

    The direction does not change when all gradients are scaled, so a fixed ``sigma`` is a fixed
    ratio of noise to direction; ``adaptive_noise`` makes the noise follow the scale of the
    gradient, and this ratio with it.

    Args:
        betas: decays of Adam's moments, each in [0, 1); also taken as ``beta1`` and ``beta2``.
        eps: :math:`\epsilon > 0` [gradient].
        others: see :class:`UPGD`.
    Raises: ValueError: a hyperparameter out of its range.
    """

    kept: ClassVar[tuple[str, ...]] = ("avg_utility", "first_moment", "sec_moment")
    rules: ClassVar[dict[str, Rule]] = {**UPGD.rules, **ADAM}

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
        _, first, second = block.kept
        utility.update_moments_(
            first, second, block.grads, batch.group["betas"], is_published=batch.is_published
        )

    def directions(self, batch: Batch, block: Block) -> list[Tensor]:
        _, first, second = block.kept
        steps, group = [batch.states[row]["step"] for row in block.rows], batch.group
        betas, eps, is_published = group["betas"], group["eps"], batch.is_published
        return utility.adam_directions(first, second, betas, steps, eps, is_published=is_published)


class UPGDW(AdaptiveUPGD):
    r"""AdaptiveUPGD to put in the place of AdamW, with its names and defaults.

    Decay first, then Adam's direction with noise and gates; the utility's decay is :math:`\beta_2`.

    Args:
        betas: decays of Adam's moments, each in [0, 1); the second is also the utility's.
        others: see :class:`UPGD`.
    Raises: ValueError: a hyperparameter out of its range.  TypeError: a ``beta_utility``.

    Source: the method's published drop-in for AdamW, whose state keys it has.
    """

    kept: ClassVar[tuple[str, ...]] = ("avg_utility", "exp_avg", "exp_avg_sq")
    rules: ClassVar[dict[str, Rule]] = {**SHARED, **ADAM}

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
        self._refuse_decay(options)
        super().__init__(params, lr, weight_decay, sigma=sigma, betas=betas, eps=eps, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._refuse_decay(param_group)
        super().add_param_group(param_group)

    def _refuse_decay(self, given: Any) -> None:
        if "beta_utility" in given:
            raise TypeError("UPGDW has no beta_utility: the decay of its utility is betas[1]")

    def utility_decay(self, group: dict[str, Any]) -> float:
        return float(group["betas"][1])
