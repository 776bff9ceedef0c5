r"""The norm test: draw until the noise in the mean gradient is small against the gradient.

Source: Byrd et al. 2012, "Sample size selection in optimization methods for machine learning";
Bollapragada et al. 2018, arXiv:1802.05374.
"""

from typing import Unpack

from torch.optim import Optimizer

from gqc.checks import one_of
from gqc.noise.estimates import NoiseScaleEMA
from gqc.wrappers.two_batch import NoiseOptions, TwoBatchWrapper


class OptimizerWrapperNormTest(TwoBatchWrapper):
    r"""Step when :math:`\widehat{\mathrm{tr}\,\Sigma}/n \le \theta^2\,\widehat{\|G\|^2}`.

    Both are the open window's own unbiased estimates (:func:`gqc.noise.unequal_two_batch`).

    A window ends when its own noise happens to look small, so the ``noise_scale`` that
    ``statistics()`` reports is biased low in few dimensions (a ratio of 10 in 30 dimensions reads
    as about 6); GNS, which looks at past windows alone, is not.

    Args:
        optimizer: see :class:`~gqc.wrappers.base.OptimizerWrapper`, as are the other keywords.
            Always sums in a buffer, which gives the norm of each draw.
        theta: :math:`\theta` > 0, noise-to-signal ratio of norms allowed in the mean gradient.
        rhs: ``"published"`` puts :math:`\|G_n\|^2` on the right, which holds the noise itself:
            without signal both sides are near :math:`\mathrm{tr}\,\Sigma/n`, and it stops at once.
        decay, robust, correlation: of the averages that ``statistics()`` reports, see
            :class:`~gqc.wrappers.two_batch.TwoBatchWrapper`.
        reactive: False puts these averages over past windows in place of the open one's estimates,
            so that :meth:`closes_next` knows; with ``"debiased"`` it is then GNS with a
            ``noise_tolerance`` of :math:`\theta^2`.
    Raises: ValueError: an argument out of its range.
    """

    strictest = {"theta": min}

    def __init__(
        self,
        optimizer: Optimizer,
        theta: float = 1.0,
        rhs: str = "debiased",
        decay: float = 0.95,
        *,
        max_draws: int | None = 64,
        reactive: bool = True,
        **options: Unpack[NoiseOptions],
    ) -> None:
        self.rhs = one_of("rhs", rhs, ("debiased", "published"))
        tunables = {"theta": theta}
        super().__init__(optimizer, tunables, decay, reactive, max_draws=max_draws, **options)

    def is_small(self, noise: NoiseScaleEMA, weight: float) -> bool:
        left, signal_sq = noise.noise_trace / weight, noise.signal_sq
        right = signal_sq if self.rhs == "debiased" else signal_sq + left
        return left <= self.tunable("theta") ** 2 * right

    def joined(self) -> NoiseScaleEMA:
        return NoiseScaleEMA(decay=0.0)  # the open window alone
