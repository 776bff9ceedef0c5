r"""Gradient norm threshold: draw until the norm of the mean gradient falls to a threshold.

In expectation :math:`E\|G_n\|^2 = \|G\|^2 + \mathrm{tr}\,\Sigma/n`, so a window closes near
:math:`n^* = \mathrm{tr}\,\Sigma/(\tau^2-\|G\|^2)` draws, and a threshold
:math:`\tau \le \|G\|` is out of reach: every window runs to ``max_draws``.
"""

import math
from typing import Any, Unpack

from torch.optim import Optimizer

from gqc.noise.estimates import NoiseScaleEMA, predicted_draws, two_batch
from gqc.wrappers.base import OptimizerWrapper
from gqc.wrappers.options import WindowOptions

PATIENCE = 10  # forced windows in a row, after which the threshold counts as out of reach


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

    Source: torch-gqc 0.10.4 and its README; the estimate of reach is ours; several groups: the
    strictest threshold decides (there: the minimum decides and the mean is reported).
    """

    strictest = {"gradient_norm_threshold": min}
    kept = ("_noise", "_first", "_forced_in_a_row")

    def __init__(
        self,
        optimizer: Optimizer,
        gradient_norm_threshold: float = 1.0,
        *,
        max_draws: int | None = 64,
        **options: Unpack[WindowOptions],
    ) -> None:
        self._noise = NoiseScaleEMA()
        self._first: list[float] | None = None  # W and norm where it was first read
        self._forced_in_a_row = 0
        tunables = {"gradient_norm_threshold": gradient_norm_threshold}
        super().__init__(optimizer, tunables, max_draws=max_draws, **options)

    def needs_grad_norm(self) -> bool:
        return True

    def should_step(self) -> bool:
        norm, threshold = self.grad_norm, self.tunable("gradient_norm_threshold")
        return norm is not None and norm <= threshold

    def on_draw(self) -> None:
        if self._first is None and self.grad_norm is not None:
            self._first = [self.weight, self.grad_norm]

    def on_close(self, stepped: bool) -> None:
        first, self._first, last = self._first, None, self.last_window
        if not stepped or last is None:
            return
        if first is not None and last.grad_norm is not None and last.weight > first[0]:
            small_sq, large_sq = first[1] * first[1], last.grad_norm * last.grad_norm
            if math.isfinite(small_sq) and math.isfinite(large_sq):
                signal_sq, noise_trace = two_batch(small_sq, large_sq, last.weight / first[0])
                self._noise.update(signal_sq, noise_trace * first[0])
        self._forced_in_a_row = self._forced_in_a_row + 1 if last.is_forced else 0
        if self._forced_in_a_row == PATIENCE and self.tunable("gradient_norm_threshold") > 0:
            self._warn_once(self._out_of_reach(last.grad_norm))

    def _out_of_reach(self, norm: float | None) -> str:
        threshold, noise = self.tunable("gradient_norm_threshold"), self._noise
        why = f"The last norm was {norm:.3g}"
        if noise.signal_sq > 0:
            why = f"Without its noise the gradient has a norm of about {noise.signal_sq**0.5:.3g}"
        remedy = "; raise the threshold or max_draws"
        if noise.num_updates:
            draws = predicted_draws(noise.signal_sq, max(noise.noise_trace, 0.0), threshold)
            remedy = f"; about {draws:.0f} draws would do{remedy}"
            if draws == math.inf:
                remedy = ", which no number of draws gets below; raise the threshold"
        return (
            f"{PATIENCE} windows in a row ran to max_draws={self.max_draws} without a norm at or "
            f"below gradient_norm_threshold={threshold:g}. {why}{remedy} (this comes once)"
        )

    def statistics(self) -> dict[str, Any]:
        noise = self._noise.statistics()
        signal_sq, threshold = noise["signal_sq"], self.tunable("gradient_norm_threshold")
        is_beyond = None if signal_sq is None else threshold**2 <= signal_sq
        return {**super().statistics(), **noise, "threshold_unreachable": is_beyond}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        super().load_extra_state({"forced_in_a_row": 0, **extra})  # as older files
