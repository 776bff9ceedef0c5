r"""Are the noise estimators right?  Measured on streams of gradients whose noise is known.

A stream's gradients are :math:`g_i = G + \epsilon_i` with :math:`|G|^2 = 1` and
:math:`\epsilon_i \sim N(0, (R/d) I)`, so that :math:`\mathrm{tr}\,\Sigma = R`: the noise scale
(the :math:`B_{simple}` of McCandlish et al. 2018, arXiv:1812.06162) is R microbatches.

`measure_estimates` holds the two-batch estimator, and the ratio that torch-gqc publishes under that
name, to R; `gqc_lab.studies.noise.wrappers` has the wrappers draw from the same streams.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor

from gqc.checks import expect
from gqc.noise import NoiseScaleEMA, two_batch
from gqc_lab.loop.placement import find_device, find_dtype, make_generator
from gqc_lab.stats.analysis import summarize

#: scale -> windows per point, whose standard errors fall with the square root, and dimensions
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"windows": 20, "dimensions": [100, 10_000]},
    "laptop": {"windows": 200, "dimensions": [100, 10_000]},
    "paper": {"windows": 2000, "dimensions": [100, 10_000, 100_000]},
}

#: measurement: what was measured; noise_scale, dimension, threshold: on which stream, at which
#: threshold (NaN: none); truth: known or predicted; measured: with its 95 % interval low, high;
#: predicted_error: standard error that theory gives ``measured``, as a share of the truth (NaN:
#: none); num_windows: averaged; num_forced: of them, ended by ``max_draws``; is_flagged: does
#: ``statistics()`` call the threshold unreachable?
COLUMNS = (
    *("measurement", "noise_scale", "dimension", "threshold", "truth", "measured", "low", "high"),
    *("predicted_error", "num_windows", "num_forced", "is_flagged"),
)


def stream(
    noise_scale: float,
    dimension: int,
    num_draws: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Iterator[Tensor]:
    r"""Yield windows of gradients with :math:`|G|^2 = 1` and :math:`\mathrm{tr}\,\Sigma = R`.

    Args:
        noise_scale: R, >= 0.
        dimension: d, parameters.
        seed: of a stream of its own for each R and d.
        device, dtype: where the gradients are given; they are made on the CPU in float32.
    Yields: tensors of shape (num_draws, dimension).
    Raises: ValueError: a noise scale or a dimension out of its range.
    """
    is_finite = 0 <= noise_scale < math.inf
    expect(is_finite, "noise_scale", noise_scale, "a finite number >= 0")
    expect(dimension >= 1, "dimension", dimension, "an integer >= 1")
    where, kind = find_device(device), find_dtype(dtype)
    generator = make_generator(seed, f"noise {noise_scale:g} {dimension}")
    signal = torch.randn(dimension, generator=generator)
    signal /= signal.norm()
    deviation = math.sqrt(noise_scale / dimension)
    while True:
        noise = torch.randn(num_draws, dimension, generator=generator)
        yield noise.mul_(deviation).add_(signal).to(where, kind)


def published_ratio(norms: Tensor) -> float:
    r"""Return the variance of the norms over their mean square, which torch-gqc calls noise scale.

    :math:`\mathrm{Var}_i|g_i| / \mathrm{mean}_i|g_i|^2`: how much the *lengths* differ.  In high
    dimension all lengths are nearly equal, whatever the noise: for the streams here it is
    :math:`(1 - (R+1)^{-2})/2d`, to first order in 1/d.
    """
    return (norms.var() / norms.square().mean()).item()


def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, confidence: float = 0.95
) -> tuple[float, float]:
    r"""Return Fieller's interval of a ratio of means that is known not to be negative.

    All :math:`\rho \ge 0` that a t-test of :math:`E(a - \rho b) = 0` does not reject,

    .. math:: m\,(\bar a - \rho\bar b)^2 \le t^2\,(s_{aa} - 2\rho s_{ab} + \rho^2 s_{bb}),

    with t the quantile of m - 1 degrees.  Where :math:`\bar b` is not distinguishable from zero no
    ratio is too large: the upper bound is inf.

    Returns: the bounds (of the hull, where the set has a gap); NaN where the set is empty, as
        when the mean of one is negative beyond chance.
    Raises: ValueError: not pairs, or fewer than two.
    """
    a, b = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if not (a.shape == b.shape == (len(a),) and len(a) > 1):
        raise ValueError(f"shapes {a.shape}, {b.shape}: expected two or more pairs")
    (s_aa, s_ab), (_, s_bb) = np.cov(a, b) / len(a)
    t_sq = stats.t.ppf((1 + confidence) / 2, len(a) - 1) ** 2
    quadratic = b.mean() ** 2 - t_sq * s_bb
    linear = a.mean() * b.mean() - t_sq * s_ab
    constant = a.mean() ** 2 - t_sq * s_aa
    discriminant = linear**2 - quadratic * constant
    if quadratic > 0:  # then the root is real: rho = mean a / mean b is never rejected
        root = math.sqrt(max(discriminant, 0.0))
        low, high = (linear - root) / quadratic, (linear + root) / quadratic
        return (max(float(low), 0.0), float(high)) if high >= 0 else (math.nan, math.nan)
    if discriminant <= 0 or constant <= 0:
        return 0.0, math.inf
    # 0 is rejected, so one root lies above it: from there on nothing is
    return float(constant / (linear + math.sqrt(discriminant))), math.inf


def two_batch_errors(
    signal_sq: float, noise_trace: float, num_draws: float, dimension: float, num_windows: int = 1
) -> tuple[float, float, float]:
    r"""Standard errors of :func:`gqc.noise.two_batch` on Gaussian noise, averaged over windows.

    The sample mean and the sample covariance of Gaussian draws are independent, hence with
    :math:`T = \mathrm{tr}\,\Sigma`, :math:`\mathrm{tr}\,\Sigma^2 = T^2/d` and
    :math:`G^\top\Sigma G = |G|^2 T/d` (isotropic, or G in no special direction)

    .. math:: \mathrm{Var}\,\hat T = \frac{2T^2}{d(n-1)}, \quad
        \mathrm{Var}\,\widehat{|G|^2} = \frac{4|G|^2T}{dn} + \frac{2T^2}{dn(n-1)}, \quad
        \mathrm{Cov} = -\frac{\mathrm{Var}\,\hat T}{n}

    and to first order :math:`\mathrm{Var}\,\hat R / R^2 = \mathrm{Var}\,\hat T/T^2
    + \mathrm{Var}\,\widehat{|G|^2}/|G|^4 - 2\,\mathrm{Cov}/(T|G|^2)`.

    Args:
        signal_sq, noise_trace: the true values, > 0.
        num_draws: :math:`n` microbatches per window, > 1.
        dimension: :math:`d = T^2/\mathrm{tr}\,\Sigma^2`, the number of directions with noise.
        num_windows: windows averaged.
    Returns: standard errors of ``signal_sq``, of ``noise_trace`` (same units) and the **relative**
        one of the noise scale.
    Raises: ValueError: an argument out of its range.
    """
    for name, value in (("signal_sq", signal_sq), ("noise_trace", noise_trace)):
        expect(value > 0, name, value, "the true value, > 0")
    expect(num_draws > 1, "num_draws", num_draws, "> 1")
    n, d = num_draws, dimension
    var_noise = 2 * noise_trace**2 / (d * (n - 1)) / num_windows
    var_signal = 4 * signal_sq * noise_trace / (d * n) + 2 * noise_trace**2 / (d * n * (n - 1))
    var_signal /= num_windows
    covariance = -var_noise / n
    relative = var_noise / noise_trace**2 + var_signal / signal_sq**2
    relative -= 2 * covariance / (noise_trace * signal_sq)
    return math.sqrt(var_signal), math.sqrt(var_noise), math.sqrt(relative)


def measure_estimates(
    noise_scales: Sequence[float],
    dimensions: Sequence[int],
    num_windows: int,
    num_draws: int = 32,
    **where: Any,
) -> pd.DataFrame:
    """Return estimates of the noise scale for every R and d, over the same windows.

    ``"two-batch"`` is the ratio of averages over all windows (None: unresolved), with Fieller's
    interval; ``"two-batch, running"`` the running average that `OptimizerWrapperGNS` decides by
    (decay 0.95), as it is after the last window; ``"published"`` the mean of `published_ratio`
    over windows, with a t interval.  ``where``: seed, device, dtype of `stream`.
    """
    rows = []
    for dimension in dimensions:
        for noise_scale in noise_scales:
            windows = stream(noise_scale, dimension, num_draws, **where)
            estimates = _estimate(windows, num_windows)
            error = two_batch_errors(1.0, noise_scale, num_draws, dimension, num_windows)[2]
            point = {"noise_scale": noise_scale, "dimension": dimension, "truth": noise_scale}
            point["num_windows"] = num_windows
            for name, (measured, low, high) in estimates.items():
                row = {"measurement": name, "measured": measured, "low": low, "high": high}
                rows.append(row | point | ({"predicted_error": error} if name == OURS else {}))
    return tidy(rows)


OURS, RUNNING, PUBLISHED = "two-batch", "two-batch, running", "published"


def _estimate(
    windows: Iterator[Tensor], num_windows: int
) -> dict[str, tuple[float | None, float, float]]:
    pairs, published, running = [], [], NoiseScaleEMA()
    for _ in range(num_windows):
        draws = next(windows).cpu()
        norms = torch.linalg.vector_norm(draws, dim=1, dtype=torch.float64)
        mean_norm = torch.linalg.vector_norm(draws.mean(0, dtype=torch.float64)).item()
        pairs.append(two_batch(norms.square().mean().item(), mean_norm**2, len(draws)))
        running.update(*pairs[-1])
        published.append(published_ratio(norms))
    signal_sq, noise_trace = zip(*pairs, strict=True)
    mean_signal, mean_trace = (math.fsum(x) / num_windows for x in (signal_sq, noise_trace))
    ours = mean_trace / mean_signal if mean_signal > 0 else None
    theirs = mean_interval(published)
    return {
        OURS: (ours, *ratio_interval(noise_trace, signal_sq)),
        RUNNING: (running.noise_scale, math.nan, math.nan),
        PUBLISHED: (theirs["mean"], theirs["low"], theirs["high"]),
    }


def mean_interval(values: Sequence[float]) -> pd.Series:
    """Return ``mean`` and the bounds ``low`` and ``high`` of its t interval."""
    return summarize(pd.DataFrame({"value": values, "all": 0}), "all", "value").iloc[0]


def tidy(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return rows of measurements as a frame of `COLUMNS`; what a row lacks is NaN."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = [name for name in COLUMNS if name not in ("measurement", "is_flagged", "dimension")]
    return frame.astype(dict.fromkeys(numbers, float))
