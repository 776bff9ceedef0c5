r"""Wrappers on streams whose noise is known: their draws, reports, and reachable thresholds.

Streams are those of `gqc_lab.studies.noise.streams`, and so are the columns of the frames.
Everywhere ``where`` is seed, device and dtype of the stream; its noise scale is `NOISE_SCALE`, and
:math:`n^* = \mathrm{tr}\,\Sigma / (\tau^2 - |G|^2)` the draws that a threshold should take.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import pandas as pd
import torch
from torch.optim import Optimizer

from gqc import wrappers
from gqc.noise import predicted_draws
from gqc_lab.studies.noise.streams import mean_interval, stream, tidy

CHUNK = 32  # gradients drawn at a time
NOISE_SCALE = 10.0  #: R

#: who decides by what it estimates; at this R all of them draw 7 to 20 times
REPORTERS: dict[str, Callable[[Optimizer], wrappers.OptimizerWrapper]] = {
    "gns": lambda sgd: wrappers.OptimizerWrapperGNS(sgd, noise_tolerance=0.5),
    "normtest": lambda sgd: wrappers.OptimizerWrapperNormTest(sgd, theta=1.0),
    "gnts": lambda sgd: wrappers.OptimizerWrapperGNTS(sgd, gradient_norm_threshold=1.6),
}


def measure_reports(dimensions: Sequence[int], num_windows: int, **where: Any) -> pd.DataFrame:
    """Return the median noise scale that each of `REPORTERS` reports.

    The first half of the windows is left out, and so are unresolved ones (NaN where all are).
    """
    rows = []
    for dimension in dimensions:
        for name, make in REPORTERS.items():
            wrapper, draws, reports = _run(make, dimension, num_windows, where)
            late = pd.Series(reports[num_windows // 2 :], dtype=float)
            row = {"measurement": f"{name} reports", "truth": NOISE_SCALE}
            row |= {"measured": late.median(), "num_windows": len(draws), "dimension": dimension}
            forced = wrapper.statistics()["num_forced"]
            rows.append(row | {"noise_scale": NOISE_SCALE, "num_forced": forced})
    return tidy(rows)


def measure_draws(
    predicted: Sequence[float], dimensions: Sequence[int], num_windows: int, **where: Any
) -> pd.DataFrame:
    r"""Return the mean draws of GNTS at thresholds :math:`\tau = \sqrt{1 + R/n^*}`.

    ``truth`` is :math:`\lceil n^* \rceil`, the first draw whose expected squared norm is below the
    threshold.  Windows may run to 8 times that.

    Args:
        predicted: :math:`n^*`, > 0 and not whole (at a whole number it is a coin's toss whether
            that draw or the next ends a window); thresholds are rounded to four decimals.
    """
    rows = []
    for dimension in dimensions:
        for target in predicted:
            threshold = round(math.sqrt(1 + NOISE_SCALE / target), 4)
            limit = math.ceil(target)
            row = _measure_gnts(dimension, threshold, 8 * limit, num_windows, where)
            rows.append(row | {"measurement": "draws", "truth": limit})
    return tidy(rows)


def measure_reach(
    thresholds: Sequence[float],
    dimensions: Sequence[int],
    num_windows: int,
    max_draws: int = 64,
    **where: Any,
) -> pd.DataFrame:
    r"""Return the mean draws of `OptimizerWrapperGNTS` at thresholds, in norms of the signal G.

    ``truth`` is :math:`\min(\lceil n^* \rceil, n_{max})`: ``max_draws`` where the threshold cannot
    be reached, or not by then.
    """
    rows = []
    for dimension in dimensions:
        for threshold in thresholds:
            row = _measure_gnts(dimension, threshold, max_draws, num_windows, where)
            needed = predicted_draws(1.0, NOISE_SCALE, threshold)
            truth = math.ceil(needed) if needed < max_draws else max_draws
            rows.append(row | {"measurement": "reach", "truth": truth})
    return tidy(rows)


def _measure_gnts(
    dimension: int, threshold: float, max_draws: int, num_windows: int, where: dict[str, Any]
) -> dict[str, Any]:
    make = partial(
        wrappers.OptimizerWrapperGNTS, gradient_norm_threshold=threshold, max_draws=max_draws
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "10 windows in a row")  # what is measured here
        wrapper, draws, _ = _run(make, dimension, num_windows, where)
    statistics = wrapper.statistics()
    mean = mean_interval(draws)
    return {
        "noise_scale": NOISE_SCALE,
        "dimension": dimension,
        "threshold": threshold,
        "measured": mean["mean"],
        "low": mean["low"],
        "high": mean["high"],
        "num_windows": len(draws),
        "num_forced": statistics["num_forced"],
        "is_flagged": statistics["threshold_unreachable"],
    }


def _run(
    make: Callable[[Optimizer], wrappers.OptimizerWrapper],
    dimension: int,
    num_windows: int,
    where: dict[str, Any],
) -> tuple[wrappers.OptimizerWrapper, list[int], list[float | None]]:
    """Return a wrapper after ``num_windows``, their draws, and the noise scale after each."""
    gradients = chain.from_iterable(stream(NOISE_SCALE, dimension, CHUNK, **where))
    first = next(gradients)
    param = torch.zeros_like(first, requires_grad=True)
    wrapper = make(torch.optim.SGD([param], lr=0.0))
    draws, reports = [0], []  # the last window is open
    for gradient in chain([first], gradients):
        param.grad = gradient.clone() if param.grad is None else param.grad.add_(gradient)
        draws[-1] += 1
        if wrapper.step():
            reports.append(wrapper.statistics()["noise_scale"])
            if len(draws) == num_windows:
                break
            draws.append(0)
    return wrapper, draws, reports
