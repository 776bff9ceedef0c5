r"""What the noise-driven wrappers share: :math:`|G|^2` and :math:`\mathrm{tr}\,\Sigma` of a window.

Accumulation gives two batch sizes for free: the norms of the single draws and that of their mean.
With draws of weights :math:`w_i`, sum W, and noise T of one unit of weight,
:math:`E\|g_i\|^2=\|G\|^2+T/w_i` and :math:`E\|G_n\|^2=\|G\|^2+T/W`, hence
:math:`S_1-S_2` with :math:`S_1=\sum_i w_i\|g_i\|^2/W` has the mean :math:`(n-1)T/W`.
"""

import copy
import math
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.diagnostics import DrawCorrelation
from gqc.noise.estimates import NoiseScaleEMA, RobustNoiseScaleEMA, unequal_two_batch
from gqc.wrappers.base import OptimizerWrapper
from gqc.wrappers.options import WindowOptions

FIRST_WINDOW = 8  # draws while no window is known: enough for a first estimate


class NoiseOptions(WindowOptions, total=False):
    """Those, and what says how the noise is averaged and checked."""

    robust: bool
    correlation: DrawCorrelation | None


class TwoBatchWrapper(OptimizerWrapper):
    r"""Keeps :math:`W S_1` of the open window and averages the estimates over windows.

    ``statistics()`` adds ``signal_sq`` (:math:`\|G\|^2`), ``noise_trace``
    (:math:`\mathrm{tr}\,\Sigma` of one microbatch, of one token or example where they are the
    weights), None before the first window, and ``noise_scale`` (their ratio in the same units, None
    while the signal is unresolved).

    Args:
        decay: of the average over windows, in [0, 1).
        reactive: does the open window decide?  Else past ones do, which are known before a draw.
        robust: average as :class:`~gqc.noise.RobustNoiseScaleEMA`, for heavy-tailed noise.
        correlation: a :class:`~gqc.diagnostics.DrawCorrelation` that is shown every draw, and
            warns if their noise is correlated, which all estimates rule out.  A pass over the
            gradient and a host sync more a draw; not part of a checkpoint.
    """

    fewest_draws = 2
    needs_draw_norm: ClassVar[bool] = True
    kept = ("_noise", "_sum_sq")
    options: ClassVar[type] = NoiseOptions

    def __init__(
        self,
        optimizer: Optimizer,
        tunables: dict[str, float],
        decay: float,
        reactive: bool,
        *,
        max_draws: int | None,
        robust: bool = False,
        correlation: DrawCorrelation | None = None,
        **options: Unpack[WindowOptions],
    ) -> None:
        self.reactive, self.correlation = reactive, correlation
        self._noise = (RobustNoiseScaleEMA if robust else NoiseScaleEMA)(decay)
        self._sum_sq = 0.0  # W S_1
        super().__init__(optimizer, tunables, max_draws=max_draws, **options)

    def is_small(self, noise: NoiseScaleEMA, weight: float) -> bool:
        """Is the mean over that weight good enough, by the averages in ``noise``?"""
        raise NotImplementedError

    def needs_grad_norm(self) -> bool:
        # By past windows alone it is known before the draw whether the window closes with it.
        return self.reactive or self.is_full() or self.should_step()

    def should_step(self) -> bool:
        if not self.reactive:
            return self.by_past(self.num_draws, self.weight)
        noise = self.joined()
        if estimate := self.estimate(self.num_draws, self.weight, self.grad_norm):
            noise.update(*estimate)
        return noise.num_updates > 0 and self.is_small(noise, self.weight)

    def joined(self) -> NoiseScaleEMA:
        """Return the averages that the open window joins where it decides."""
        return copy.deepcopy(self._noise)

    def may_close(self, weight: float) -> bool:
        return self.reactive or self.by_past(self.num_draws + 1, self.weight + weight)

    def by_past(self, num_draws: int, weight: float) -> bool:
        """Does a window of these draws close, by past windows alone?"""
        if self._noise.num_updates == 0:
            return num_draws >= FIRST_WINDOW or num_draws == self.max_draws
        return self.is_small(self._noise, weight)

    def on_staged(self, staged: list[Tensor]) -> None:
        if self.correlation is not None:
            factor: Any = self._window.unit / self._window.last_weight  # where losses are summed
            if self._window.scale is not None:
                factor = factor / self._window.scale
            pairs = zip(self._window.params, self._window._staged, strict=True)
            whole = [torch.zeros_like(p) if g is None else g for p, g in pairs]
            self.correlation.update(whole, factor)

    def on_draw(self) -> None:
        if self.draw_norm is not None:
            self._sum_sq += self._window.last_weight * self.draw_norm * self.draw_norm

    def on_close(self, stepped: bool) -> None:
        last = self.last_window
        if stepped and last is not None:
            estimate = self.estimate(last.num_draws, last.weight, last.grad_norm)
            if estimate is not None:
                self._noise.update(*estimate)
        self._sum_sq = 0.0

    def estimate(self, n: int, weight: float, norm: float | None) -> tuple[float, float] | None:
        """Unbiased ``(signal_sq, noise_trace)`` of one window alone; None below two draws."""
        if norm is None or n < 2:
            return None
        estimate = unequal_two_batch(self._sum_sq, norm * norm, weight, n)
        return estimate if all(map(math.isfinite, estimate)) else None

    def statistics(self) -> dict[str, Any]:
        return {**super().statistics(), **self._noise.statistics()}
