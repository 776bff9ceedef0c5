r"""Gradient noise scale: draw until the batch is as large as the noise in the gradient asks for.

:math:`R=\mathrm{tr}\,\Sigma/\|G\|^2` is the number of microbatches whose mean has as much noise as
signal; far below it batches are mostly noise, far above it larger ones buy little.

Source: McCandlish et al. 2018, arXiv:1812.06162.  torch-gqc 0.10.4 divides the variance of the
scalar norms by their mean square instead, which is another quantity: at R = 100 in 10^4 dimensions
it is near 5e-5.
"""

from typing import Any, Unpack

from torch.optim import Optimizer

from gqc.noise.estimates import NoiseScaleEMA
from gqc.rank_noise import RankNoise
from gqc.wrappers.two_batch import NoiseOptions, TwoBatchWrapper


class OptimizerWrapperGNS(TwoBatchWrapper):
    r"""Step when :math:`\hat R \le n\,\epsilon`, noise tolerance :math:`\epsilon`.

    :math:`\hat R=\mathrm{ema}(\widehat{\mathrm{tr}\,\Sigma})/\mathrm{ema}(\widehat{\|G\|^2})` over
    **past** windows: n is chosen before the window's noise is seen, so the estimate stays unbiased.
    The first window draws 8, unless ``reactive``; while the signal is unresolved (a negative
    estimate of :math:`\|G\|^2`) a window draws ``max_draws``.

    Args:
        optimizer: see :class:`~gqc.wrappers.base.OptimizerWrapper`, as are the other keywords.
            Always sums in a buffer, which gives the norm of each draw.
        noise_tolerance: :math:`\epsilon` > 0, noise-to-signal ratio allowed in the mean gradient.
        decay, robust, correlation: of the average over windows, see
            :class:`~gqc.wrappers.two_batch.TwoBatchWrapper`.
        reactive: let the open window into :math:`\hat R`: reacts to a hard batch at once (and may
            step from the first window's second draw on), and is biased low, since a window then
            ends when its noise happens to look small.
        rank_noise: a :class:`~gqc.rank_noise.RankNoise` of the model, whose average over draws
            replaces that over windows: it knows the noise from the first draw on, and windows may
            have one draw.  ``statistics()`` then counts in microbatches of one rank.  Draws have
            no weights, and the wrapper cannot be copied.
    Raises: ValueError: an argument out of its range, or ``rank_noise`` with ``reactive``.
    """

    strictest = {"noise_tolerance": min}

    def __init__(
        self,
        optimizer: Optimizer,
        noise_tolerance: float = 1.0,
        decay: float = 0.95,
        reactive: bool = False,
        *,
        max_draws: int | None = 64,
        rank_noise: RankNoise | None = None,
        **options: Unpack[NoiseOptions],
    ) -> None:
        self.rank_noise = rank_noise
        if rank_noise is not None:
            if reactive:
                raise ValueError("rank_noise= averages over draws already: leave out reactive=True")
            self.fewest_draws = 1
        tunables = {"noise_tolerance": noise_tolerance}
        super().__init__(optimizer, tunables, decay, reactive, max_draws=max_draws, **options)
        if rank_noise is not None:
            self._noise = rank_noise.average

    def before_draw(self) -> None:
        if self.rank_noise is not None:
            self.rank_noise.update(self.grad_scaler)

    def may_close(self, weight: float) -> bool:
        return self.rank_noise is not None or super().may_close(weight)

    def is_small(self, noise: NoiseScaleEMA, weight: float) -> bool:
        scale = noise.noise_scale
        if scale is not None and self.rank_noise is not None:
            scale /= self.ranks.require("rank_noise=").size
        return scale is not None and scale <= weight * self.tunable("noise_tolerance")

    def on_draw(self) -> None:
        if self.rank_noise is not None and self._window.is_weighted:
            raise ValueError("step(weight=...) with rank_noise=, whose ranks all weigh the same")
        super().on_draw()

    def estimate(self, n: int, weight: float, norm: float | None) -> tuple[float, float] | None:
        return None if self.rank_noise is not None else super().estimate(n, weight, norm)

    def __getstate__(self) -> dict[str, Any]:
        if self.rank_noise is not None:
            raise TypeError("a wrapper with rank_noise= cannot be copied: it belongs to its model")
        return super().__getstate__()
