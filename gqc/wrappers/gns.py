r"""Gradient noise scale: draw until the batch is as large as the noise in the gradient asks for.

:math:`R=\mathrm{tr}\,\Sigma/\|G\|^2` is the number of microbatches whose mean has as much noise as
signal; far below it batches are mostly noise, far above it larger ones buy little.

Source: McCandlish et al. 2018, arXiv:1812.06162.  torch-gqc 0.10.4 divides the variance of the
scalar norms by their mean square instead, which is another quantity: at R = 100 in 10^4 dimensions
it is near 5e-5.
"""

from __future__ import annotations

from typing import Unpack

from torch.optim import Optimizer

from gqc.noise.estimates import NoiseScaleEMA
from gqc.wrappers.options import WindowOptions
from gqc.wrappers.two_batch import TwoBatchWrapper

FIRST_WINDOW = 8  # draws while no window is known: enough for a first estimate


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
        decay: of the average over windows, in [0, 1).
        reactive: let the open window into :math:`\hat R`: reacts to a hard batch at once (and may
            step from the first window's second draw on), and is biased low, since a window then
            ends when its noise happens to look small.
    Raises: ValueError: an argument out of its range.
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
        **options: Unpack[WindowOptions],
    ) -> None:
        self.reactive = reactive
        tunables = {"noise_tolerance": noise_tolerance}
        super().__init__(optimizer, tunables, decay, max_draws=max_draws, **options)

    def needs_grad_norm(self) -> bool:
        # By past windows alone it is known before the draw whether the window closes with it.
        return self.reactive or self.is_full() or self.should_step()

    def should_step(self) -> bool:
        noise = self._with_open_window() if self.reactive else self._noise
        return self._is_enough(noise, self.num_draws, self.weight)

    def may_close(self, weight: float) -> bool:
        if self.reactive:
            return True
        return self._is_enough(self._noise, self.num_draws + 1, self.weight + weight)

    def _is_enough(self, noise: NoiseScaleEMA, num_draws: int, weight: float) -> bool:
        if noise.num_updates == 0:
            return num_draws >= FIRST_WINDOW or num_draws == self.max_draws
        scale = noise.noise_scale
        return scale is not None and scale <= weight * self.tunable("noise_tolerance")

    def _with_open_window(self) -> NoiseScaleEMA:
        estimate = self.window_estimate()
        if estimate is None:
            return self._noise
        noise = NoiseScaleEMA(self._noise.decay)
        noise.load_state_dict(self._noise.state_dict())
        noise.update(*estimate)
        return noise
