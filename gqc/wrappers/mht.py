"""Metric hypothesis test: draw until the mean of a metric (the loss, say) is known well enough."""

import math
from typing import Any, Unpack

from torch import Tensor
from torch.optim import Optimizer

from gqc.checks import expect
from gqc.wrappers.base import OptimizerWrapper
from gqc.wrappers.options import WindowOptions


class OptimizerWrapperMHT(OptimizerWrapper):
    r"""Step when the t-interval of the mean metric is narrow.

    Samples: the window's metrics, and the running average of the metrics before it.  With their
    mean m, standard deviation s and number k, steps when
    :math:`t_{(1+c)/2,\,k-1}\; s/\sqrt k \le \epsilon\,|m|`: a probability c that the mean is within
    a share :math:`\epsilon` of itself.  At least two draws.

    Args:
        optimizer: see :class:`~gqc.wrappers.base.OptimizerWrapper`, as are the other keywords.
        confidence: c in (0, 1).
        error_tolerance: :math:`\epsilon` > 0.
        ema_alpha: weight of each new metric in the running average, in (0, 1].
    Raises:
        ImportError: scipy is missing (the ``lab`` extra has it).
        ValueError: an argument out of its range.

    A metric that is missing, NaN or infinite discards its draw (counted, one warning).  Under
    ``torch.distributed`` the metric is averaged over all ranks, so that they decide alike.  Each
    draw waits for its metric, unless that is a number on the host, and with a buffer also for the
    check of its gradient; without one the step waits for that of the window.

    ``statistics()`` adds ``running_mean``, ``ci_low``, ``ci_high`` (of the last decision; None
    before).

    Source: torch-gqc 0.10.4 and its README; differs: the running average has the metrics *before*
    the window only (there the first call compares a metric with itself and always steps), no
    absolute epsilon, and a relative width that also works for negative metrics.
    """

    strictest = {"confidence": max, "error_tolerance": min}
    fewest_draws = 2
    needs_gradient = False
    kept = ("running_mean", "interval", "_metrics")

    def __init__(
        self,
        optimizer: Optimizer,
        confidence: float = 0.98,
        error_tolerance: float = 0.03,
        ema_alpha: float = 0.01,
        *,
        max_draws: int | None = 64,
        **options: Unpack[WindowOptions],
    ) -> None:
        try:
            from scipy.special import stdtrit
        except ImportError as error:
            raise ImportError(
                "OptimizerWrapperMHT needs scipy for Student's t: pip install 'gqc-kit[lab]'"
            ) from error
        expect(0 < confidence < 1, "confidence", confidence, "in (0, 1)")
        expect(0 < ema_alpha <= 1, "ema_alpha", ema_alpha, "in (0, 1]")
        self._quantile = stdtrit
        self.ema_alpha = ema_alpha
        self.running_mean: float | None = None
        self.interval: list[float] | None = None
        self._metrics: list[float] = []
        tunables = {"confidence": confidence, "error_tolerance": error_tolerance}
        super().__init__(optimizer, tunables, max_draws=max_draws, **options)

    def observe_metric(self, metric: float | Tensor | None) -> bool:
        own = metric.detach() if isinstance(metric, Tensor) else metric
        ranks = self.ranks.require("step(metric=...)")
        one = math.nan if own is None else float(own)  # makes NaN of that of all ranks
        value = ranks.sum([one], self._window.params[0].device)[0] / ranks.size
        if not math.isfinite(value):
            self._warn_once(
                f"metric={metric}: a draw without a finite metric is discarded (num_discarded); "
                "call step(metric=loss) (this warning comes once)"
            )
            return False
        self._metrics.append(value)
        return True

    def should_step(self) -> bool:
        history = [] if self.running_mean is None else [self.running_mean]
        confidence = self.tunable("confidence")
        expect(0 < confidence < 1, "confidence", confidence, "in (0, 1)")  # it may be edited
        mean, half = t_interval([*history, *self._metrics], confidence, self._quantile)
        self.interval = [mean - half, mean + half]
        return half <= self.tunable("error_tolerance") * abs(mean)

    def on_close(self, stepped: bool) -> None:
        if stepped:
            for value in self._metrics:
                mean = value if self.running_mean is None else self.running_mean
                self.running_mean = mean + self.ema_alpha * (value - mean)
        self._metrics = []

    def statistics(self) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        own = {"running_mean": self.running_mean, "ci_low": low, "ci_high": high}
        return {**super().statistics(), **own}


def t_interval(samples: list[float], confidence: float, quantile: Any) -> tuple[float, float]:
    r"""Mean and half-width :math:`t_{(1+c)/2,k-1}\,s/\sqrt k` of the t-interval; inf below k = 2.

    Args:
        samples: k numbers.
        confidence: c in (0, 1).
        quantile: ``scipy.special.stdtrit``.
    """
    k = len(samples)
    mean = math.fsum(samples) / k
    if k < 2:
        return mean, math.inf
    variance = math.fsum((x - mean) ** 2 for x in samples) / (k - 1)
    return mean, float(quantile(k - 1, (1 + confidence) / 2)) * math.sqrt(variance / k)
