r"""Gradient norm threshold: draw until the norm of the mean gradient falls to a threshold.

In expectation :math:`E\|G_n\|^2 = \|G\|^2 + \mathrm{tr}\,\Sigma/n`, so a window closes near
:math:`n^* = \mathrm{tr}\,\Sigma/(\tau^2-\|G\|^2)` draws, and a threshold
:math:`\tau \le \|G\|` is out of reach: every window runs to ``max_draws``.

Source: torch-gqc and its README; the estimate of reach is ours.
"""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from gqc.noise import NoiseScaleEMA, two_batch
from gqc.wrappers.base import OptimizerWrapper


class OptimizerWrapperGNTS(OptimizerWrapper):
    r"""Step when :math:`\|G_n\| \le \tau` (or n reached ``max_draws``).

    The threshold is an upper bound on the norm of the gradient that the optimizer sees: lower is
    stricter.  Under data parallelism the noise in the norm is
    :math:`\mathrm{tr}\,\Sigma/(nW)` with W ranks: a threshold tuned on one rank draws less on W.
    One pass over the gradient and one host sync a draw.

    Args:
        optimizer: see :class:`~gqc.wrappers.base.OptimizerWrapper`, as are the keywords.
        gradient_norm_threshold: :math:`\tau`, [loss / parameter], > 0; a schedule may reach 0,
            which draws ``max_draws`` every time.

    ``statistics()`` adds ``signal_sq`` (:math:`\|G\|^2`), ``noise_trace`` (of one microbatch) and
    ``noise_scale`` (their ratio, None while unresolved), estimated over windows of two draws and
    more from the norms that the decision read anyway; and ``threshold_unreachable``: is
    :math:`\tau^2 \le \|G\|^2` by that estimate (None before the first).  A window ends when its
    norm happens to be low, which biases the signal down (a ratio of 10 in 30 dimensions reads as
    about 14, in 1000 as 10): a guide, not a measurement.

    Source: torch-gqc 0.10.4; several groups: the strictest threshold decides (there: the minimum
    decides and the mean is reported).
    """

    strictest = {"gradient_norm_threshold": min}

    def __init__(
        self, optimizer: Optimizer, gradient_norm_threshold: float = 1.0, **options: Any
    ) -> None:
        self._noise = NoiseScaleEMA()
        self._first: tuple[int, float] | None = None  # n and norm where the window was first read
        super().__init__(optimizer, gradient_norm_threshold=gradient_norm_threshold, **options)

    def needs_grad_norm(self) -> bool:
        return True

    def should_step(self) -> bool:
        return self.grad_norm is not None and self.grad_norm <= self.tunable(
            "gradient_norm_threshold"
        )

    def on_draw(self) -> None:
        if self._first is None and self.grad_norm is not None:
            self._first = (self.num_draws, self.grad_norm)

    def on_close(self, stepped: bool) -> None:
        first, self._first = self._first, None
        n, norm = self.last_num_draws, self.last_grad_norm
        if not stepped or first is None or n is None or norm is None or n <= first[0]:
            return
        small_sq, large_sq = first[1] * first[1], norm * norm
        if math.isfinite(small_sq) and math.isfinite(large_sq):
            signal_sq, noise_trace = two_batch(small_sq, large_sq, n / first[0])
            self._noise.update(signal_sq, noise_trace * first[0])

    def statistics(self) -> dict[str, Any]:
        noise = self._noise
        known = noise.num_updates > 0
        threshold = self.tunable("gradient_norm_threshold")
        return {
            **super().statistics(),
            "signal_sq": noise.signal_sq if known else None,
            "noise_trace": noise.noise_trace if known else None,
            "noise_scale": noise.noise_scale,
            "threshold_unreachable": threshold**2 <= noise.signal_sq if known else None,
        }

    def extra_state(self) -> dict[str, Any]:
        first = list(self._first) if self._first else None
        return {"noise": self._noise.state_dict(), "first": first}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        self._noise.load_state_dict(extra["noise"])
        self._first = tuple(extra["first"]) if extra["first"] else None
