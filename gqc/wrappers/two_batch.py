r"""What the noise-driven wrappers share: :math:`|G|^2` and :math:`\mathrm{tr}\,\Sigma` of a window.

Accumulation gives two batch sizes for free: the norms of the single draws and that of their mean.
With draws of weights :math:`w_i`, sum W, and noise T of one unit of weight,
:math:`E\|g_i\|^2=\|G\|^2+T/w_i` and :math:`E\|G_n\|^2=\|G\|^2+T/W`, hence
:math:`S_1-S_2` with :math:`S_1=\sum_i w_i\|g_i\|^2/W` has the mean :math:`(n-1)T/W`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

from torch.optim import Optimizer

from gqc.noise.estimates import NoiseScaleEMA, two_batch
from gqc.wrappers.base import OptimizerWrapper
from gqc.wrappers.options import WindowOptions


class TwoBatchWrapper(OptimizerWrapper):
    r"""Keeps :math:`W S_1` of the open window and averages the estimates over windows.

    ``statistics()`` adds ``signal_sq`` (:math:`\|G\|^2`), ``noise_trace``
    (:math:`\mathrm{tr}\,\Sigma` of one microbatch, of one token or example where they are the
    weights), None before the first window, and ``noise_scale`` (their ratio in the same units, None
    while the signal is unresolved).
    """

    fewest_draws: ClassVar[int] = 2
    needs_draw_norm: ClassVar[bool] = True

    def __init__(
        self,
        optimizer: Optimizer,
        tunables: dict[str, float],
        decay: float,
        *,
        max_draws: int | None,
        **options: Unpack[WindowOptions],
    ) -> None:
        self._noise = NoiseScaleEMA(decay)
        self._sum_sq = 0.0  # W S_1
        super().__init__(optimizer, tunables, max_draws=max_draws, **options)

    def on_draw(self) -> None:
        if self.draw_norm is not None:
            self._sum_sq += self._window.last_weight * self.draw_norm * self.draw_norm

    def on_close(self, stepped: bool) -> None:
        last = self.last_window
        estimate = None
        if stepped and last is not None:
            estimate = self._estimate(last.num_draws, last.weight, last.grad_norm)
        if estimate is not None:
            self._noise.update(*estimate)
        self._sum_sq = 0.0

    def window_estimate(self) -> tuple[float, float] | None:
        """Unbiased ``(signal_sq, noise_trace)`` of the open window alone; None below two draws."""
        return self._estimate(self.num_draws, self.weight, self.grad_norm)

    def _estimate(self, n: int, weight: float, norm: float | None) -> tuple[float, float] | None:
        if norm is None or n < 2:
            return None
        signal_sq, noise_trace = two_batch(self._sum_sq / weight, norm * norm, n)
        estimate = signal_sq, noise_trace * (weight / n)
        return estimate if all(map(math.isfinite, estimate)) else None

    def statistics(self) -> dict[str, Any]:
        known = self._noise.num_updates > 0
        return {
            **super().statistics(),
            "signal_sq": self._noise.signal_sq if known else None,
            "noise_trace": self._noise.noise_trace if known else None,
            "noise_scale": self._noise.noise_scale,
        }

    def extra_state(self) -> dict[str, Any]:
        return {"noise": self._noise.state_dict(), "sum_sq": self._sum_sq}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        self._noise.load_state_dict(extra["noise"])
        self._sum_sq = extra["sum_sq"]
