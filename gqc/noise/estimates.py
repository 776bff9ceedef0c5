r"""How noisy is a gradient?  Estimators of :math:`|G|^2` and :math:`\mathrm{tr}\,\Sigma`.

A microbatch gradient is :math:`g_i = G + \epsilon_i` with :math:`E\epsilon = 0`,
:math:`\mathrm{Cov}\,\epsilon = \Sigma`.  The *noise scale* :math:`R = \mathrm{tr}\,\Sigma / |G|^2`
is the number of microbatches whose mean has as much noise as signal.

* :func:`two_batch`: from the norms of small and large batches (gradient accumulation gives both);
  :func:`unequal_two_batch` where microbatches have different sizes,
  :class:`gqc.rank_noise.RankNoise` where the small batches are those of ranks.
* :func:`ema_weight` and :func:`ema_kappa`: what debiases averages over a stream of gradients.

All of them assume **independent** draws.  Correlated ones (packed documents, a reused batch) share
noise that counts as signal, and R comes out too small: 4 to 30 times for an autocorrelation of 0.5.
:class:`gqc.diagnostics.DrawCorrelation` finds out.  Heavy-tailed noise makes the averages jump;
:class:`RobustNoiseScaleEMA` takes medians of averages instead.

Sources: McCandlish et al. 2018, arXiv:1812.06162, appendix A; the debiasing is ours.
"""

import math
import statistics
from typing import Any, TypeVar

import torch
from torch import Tensor

from gqc.checks import check_count, expect

Number = TypeVar("Number", float, Tensor)


def two_batch(small_sq: Number, large_sq: Number, num_draws: float) -> tuple[Number, Number]:
    r"""Unbiased :math:`|G|^2` and :math:`\mathrm{tr}\,\Sigma` from two batch sizes.

    :math:`\widehat{|G|^2} = (n S_2 - S_1)/(n-1)`,
    :math:`\widehat{\mathrm{tr}\,\Sigma} = (S_1 - S_2)\, n/(n-1)`.

    Args:
        small_sq: :math:`S_1 = \mathrm{mean}_i |g_i|^2` over microbatches, a float or any tensor.
        large_sq: :math:`S_2 = |G_n|^2`, squared norm of the mean of n microbatches, same type.
        num_draws: :math:`n`, large batch / small batch, > 1.
    Returns: ``(signal_sq, noise_trace)``; the trace is that of **one** microbatch.  One window's
        values may be negative: average both over windows, then divide (:class:`NoiseScaleEMA`).
    Raises: ValueError: ``num_draws`` is not > 1: one batch size can't tell noise from signal.
    Source: arXiv:1812.06162, eq. A.2, in units of the small batch.
    """
    expect(num_draws > 1, "num_draws", num_draws, "> 1; draw at least two microbatches")
    signal_sq = (num_draws * large_sq - small_sq) / (num_draws - 1)
    noise_trace = (small_sq - large_sq) * (num_draws / (num_draws - 1))
    return signal_sq, noise_trace


def unequal_two_batch(
    weighted_sq: Number, large_sq: Number, total_weight: float, num_draws: int
) -> tuple[Number, Number]:
    r"""Unbiased :math:`|G|^2` and noise trace **per unit** from microbatches of different sizes.

    A draw of :math:`w_i` units (tokens, examples) whose gradient is the mean over them has
    :math:`E|g_i|^2 = |G|^2 + T/w_i`, and :math:`G_n = \sum_i w_i g_i / W` with
    :math:`W = \sum_i w_i` has :math:`E|G_n|^2 = |G|^2 + T/W`, hence

    .. math:: \hat T = \frac{\sum_i w_i|g_i|^2 - W|G_n|^2}{n-1}, \qquad
        \widehat{|G|^2} = |G_n|^2 - \hat T / W

    Args:
        weighted_sq: :math:`\sum_i w_i|g_i|^2`, a float or any tensor.  Of summed losses, with
            :math:`s_i = w_i g_i`: :math:`\sum_i |s_i|^2/w_i`.
        large_sq: :math:`|G_n|^2`, same type.
        total_weight: W [units], > 0.
        num_draws: n > 1.
    Returns: ``(signal_sq, noise_trace)``; their quotient is the noise scale in **units**.  With
        equal weights of 1 these are the values of :func:`two_batch`.
    Raises: ValueError: ``num_draws`` is not > 1, or ``total_weight`` not > 0.
    """
    expect(num_draws > 1, "num_draws", num_draws, "> 1; draw at least two microbatches")
    expect(total_weight > 0, "total_weight", total_weight, "> 0")
    noise_trace = (weighted_sq - total_weight * large_sq) / (num_draws - 1)
    return large_sq - noise_trace / total_weight, noise_trace


def predicted_draws(signal_sq: float, noise_trace: float, threshold: float) -> float:
    r"""Draws after which the norm of the mean gradient is expected to reach a threshold.

    :math:`n^* = \mathrm{tr}\,\Sigma/(\tau^2 - |G|^2)`, from
    :math:`E|G_n|^2 = |G|^2 + \mathrm{tr}\,\Sigma/n`.

    Args:
        signal_sq: :math:`|G|^2`.
        noise_trace: :math:`\mathrm{tr}\,\Sigma` of one microbatch, >= 0.
        threshold: :math:`\tau`, a norm, >= 0.
    Returns: :math:`n^*`, not rounded (below 1: the first draw is expected to do); ``inf`` when
        :math:`\tau \le |G|`, which no number of draws reaches.
    Raises: ValueError: an argument is NaN or a negative threshold or trace.
    """
    expect(threshold >= 0, "threshold", threshold, "a norm >= 0")
    expect(noise_trace >= 0, "noise_trace", noise_trace, ">= 0; average over more windows")
    expect(not math.isnan(signal_sq), "signal_sq", signal_sq, "a number")
    room = threshold**2 - signal_sq
    return noise_trace / room if room > 0 else math.inf


class NoiseScaleEMA:
    r"""Averages :func:`two_batch` estimates over windows and divides the averages.

    :math:`\hat R = \mathrm{ema}(\widehat{\mathrm{tr}\,\Sigma})/\mathrm{ema}(\widehat{|G|^2})`: a
    ratio of averages, because the average of ratios is biased and its denominators cross zero.
    Bias-corrected: update t moves the average by :math:`(1-\beta)/(1-\beta^t)` of the difference,
    so that the first one replaces it.  No absolute epsilon: scaling all gradients changes nothing.

    Args:
        decay: :math:`\beta` in [0, 1); 0.95 averages about 20 windows (0 keeps the last one).
    Attributes:
        signal_sq: averaged :math:`|G|^2` (may be negative), 0.0 before the first update.
        noise_trace: averaged :math:`\mathrm{tr}\,\Sigma`, 0.0 before the first update.
        num_updates: windows seen.
    Raises: ValueError: decay outside [0, 1).
    """

    def __init__(self, decay: float = 0.95) -> None:
        expect(0 <= decay < 1, "decay", decay, "in [0, 1); 0.95 averages about 20 windows")
        self.decay = decay
        self.signal_sq = 0.0
        self.noise_trace = 0.0
        self.num_updates = 0

    def update(self, signal_sq: float, noise_trace: float) -> None:
        """Add one window.

        Raises: ValueError: a value is NaN or infinite; the average is left as it was.
        """
        signal_sq, noise_trace = float(signal_sq), float(noise_trace)
        if not (math.isfinite(signal_sq) and math.isfinite(noise_trace)):
            raise ValueError(
                f"signal_sq={signal_sq!r}, noise_trace={noise_trace!r}: expected finite numbers; "
                "drop windows with a non-finite gradient before they reach the average"
            )
        self.num_updates += 1
        weight = (1 - self.decay) / (1 - self.decay**self.num_updates)
        self.signal_sq += weight * (signal_sq - self.signal_sq)
        self.noise_trace += weight * (noise_trace - self.noise_trace)

    @property
    def noise_scale(self) -> float | None:
        """Noise scale in microbatches, >= 0; None while noise hides the signal."""
        if not self.signal_sq > 0:
            return None
        scale = max(self.noise_trace, 0.0) / self.signal_sq
        return scale if math.isfinite(scale) else None

    def statistics(self) -> dict[str, float | None]:
        """Return the averages and their ratio by name; None before the first window."""
        known = self.num_updates > 0
        return {
            "signal_sq": self.signal_sq if known else None,
            "noise_trace": self.noise_trace if known else None,
            "noise_scale": self.noise_scale,
        }

    def state_dict(self) -> dict[str, float]:
        """Plain numbers: decay, signal_sq, noise_trace, num_updates."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises: ValueError: other keys, a decay outside [0, 1) or a non-finite average.
        """
        name, expected = type(self).__name__, sorted(self.state_dict())
        if sorted(state) != expected:
            raise ValueError(f"{name} state has keys {sorted(state)}: expected {expected}")
        self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        NoiseScaleEMA(state["decay"])  # checks the decay
        if not (math.isfinite(state["signal_sq"]) and math.isfinite(state["noise_trace"])):
            raise ValueError("NoiseScaleEMA state holds a non-finite average")
        vars(self).update(state)


class RobustNoiseScaleEMA(NoiseScaleEMA):
    """:class:`NoiseScaleEMA` for heavy-tailed noise: medians of averages over every k-th window.

    One wild window moves one of the k averages, and not their median.  On Gaussian noise the error
    is about a quarter larger than that of the plain average.  Where the noise has no finite
    variance, no average converges; the median stays near the noise of a typical window.

    Args:
        decay: of an average over all windows; each of the k, which see one in k, has ``decay**k``.
        num_groups: k >= 1, best odd.
    Attributes: as of :class:`NoiseScaleEMA`, from the averages that have seen a window.
    Raises: ValueError: decay outside [0, 1), or ``num_groups`` not an integer >= 1.
    """

    def __init__(self, decay: float = 0.95, num_groups: int = 5) -> None:
        super().__init__(decay)
        check_count("num_groups", num_groups, 1)
        self._groups = [NoiseScaleEMA(decay**num_groups) for _ in range(num_groups)]

    def update(self, signal_sq: float, noise_trace: float) -> None:
        self._groups[self.num_updates % len(self._groups)].update(signal_sq, noise_trace)
        self.num_updates += 1
        self._take_medians()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: decay, num_updates and the state of each average."""
        groups = [group.state_dict() for group in self._groups]
        return {"decay": self.decay, "num_updates": self.num_updates, "groups": groups}

    def _restore(self, state: dict[str, Any]) -> None:
        fresh = RobustNoiseScaleEMA(state["decay"], len(state["groups"]))
        for group, saved in zip(fresh._groups, state["groups"], strict=True):
            group.load_state_dict(saved)
        fresh.num_updates = state["num_updates"]
        fresh._take_medians()
        vars(self).update(vars(fresh))

    def _take_medians(self) -> None:
        seen = [group for group in self._groups if group.num_updates]
        if seen:
            self.signal_sq = statistics.median(group.signal_sq for group in seen)
            self.noise_trace = statistics.median(group.noise_trace for group in seen)


def ema_weight(count: Tensor, beta: float) -> Tensor:
    r"""Share of the newest value in a bias-corrected average: :math:`a_t=(1-\beta)/(1-\beta^t)`.

    Moving the mean by :math:`a_t` and the spread as follows keeps both exact for every t, with
    no large numbers to subtract (Welford's form; :math:`s - m^2` loses a small variance):

    .. math:: \delta = g - m_{t-1}, \quad m_t = m_{t-1} + a_t\delta, \quad
        v_t = (1-a_t)(v_{t-1} + a_t\delta^2)

    Args:
        count: t, updates with the newest one, any shape, floating point.
        beta: decay in (0, 1).
    Returns: the shape of ``count``; exactly 1 where t = 1, and 0 where t = 0.
    """
    return _weight_and_kappa(count, beta)[0] * count.clamp_max(1)


def ema_kappa(count: Tensor, beta: float) -> Tensor:
    r"""Sum of squared weights of a bias-corrected average, the noise that its mean keeps.

    .. math:: \kappa_t = \sum w^2 = \frac{(1-\beta)^2(1-\beta^{2t})}{(1-\beta^2)(1-\beta^t)^2}
        = \frac{1-\beta}{1+\beta}\cdot\frac{1+\beta^t}{1-\beta^t}

    Args:
        count: t, any shape, floating point.
        beta: decay in (0, 1).
    Returns: the shape of ``count``, in (0, 1]; exactly 1 where t <= 1.
    """
    return _weight_and_kappa(count, beta)[1]


def ema_numbers(count: int, beta: float) -> tuple[float, float]:
    """Return :func:`ema_weight` (1 where t = 0) and :func:`ema_kappa` of a number."""
    return _of_inverse(1 / math.expm1(max(count, 1) * math.log(beta)), beta)


def _weight_and_kappa(count: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    power = count.double().clamp_min(1)
    # 1 / (beta^t - 1) without cancellation; in float64, so that it is 1 / (beta - 1) at t = 1
    weight, kappa = _of_inverse(torch.expm1(power * math.log(beta)).reciprocal(), beta)
    return weight.to(count.dtype), kappa.to(count.dtype)


def _of_inverse(inverse: Number, beta: float) -> tuple[Number, Number]:
    return inverse * (beta - 1), (inverse * 2 + 1) * ((beta - 1) / (1 + beta))
