r"""What the noise-driven wrappers share: :math:`|G|^2` and :math:`\mathrm{tr}\,\Sigma` of a window.

Accumulation gives two batch sizes for free: the norms of the single draws and that of their mean.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch.optim import Optimizer

from gqc.noise import NoiseScaleEMA, two_batch
from gqc.wrappers.base import OptimizerWrapper


class TwoBatchWrapper(OptimizerWrapper):
    r"""Keeps :math:`S_1=\mathrm{mean}_i\|g_i\|^2` of the open window and averages over windows.

    ``statistics()`` adds ``signal_sq`` (:math:`\|G\|^2`), ``noise_trace``
    (:math:`\mathrm{tr}\,\Sigma` of one microbatch), None before the first window, and
    ``noise_scale`` (their ratio in microbatches, None while the signal is unresolved).
    """

    fewest_draws: ClassVar[int] = 2
    needs_draw_norm: ClassVar[bool] = True

    def __init__(self, optimizer: Optimizer, decay: float, options: dict[str, Any]) -> None:
        self._noise = NoiseScaleEMA(decay)
        self._sum_sq = 0.0
        super().__init__(optimizer, **options)

    def on_draw(self) -> None:
        if self.draw_norm is not None:
            self._sum_sq += self.draw_norm * self.draw_norm

    def on_close(self, stepped: bool) -> None:
        estimate = self._estimate(self.last_num_draws, self.last_grad_norm) if stepped else None
        if estimate is not None:
            self._noise.update(*estimate)
        self._sum_sq = 0.0

    def window_estimate(self) -> tuple[float, float] | None:
        """Unbiased ``(signal_sq, noise_trace)`` of the open window alone; None below two draws."""
        return self._estimate(self.num_draws, self.grad_norm)

    def _estimate(self, n: int | None, norm: float | None) -> tuple[float, float] | None:
        if n is None or norm is None or n < 2:
            return None
        estimate = two_batch(self._sum_sq / n, norm * norm, n)
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
