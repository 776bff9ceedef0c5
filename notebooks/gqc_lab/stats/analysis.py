r"""Statistics of repeated runs: what a few seeds support, and no more.

Functions take tidy frames (a row per observation; columns such as ``method``, ``seed``, ``tokens``)
or plain arrays and return new ones.  The interval of a mean of two runs or more is Student's t,
:math:`\bar x \pm t_{n-1}\,s/\sqrt n`: a bootstrap promises 95 % and covers less, 84 % with five
normal runs (percentile), 89 % with ten (BCa).  One run has none: the bounds are NaN, and the column
``interval`` says why.

Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]
QUANTILE = 0.975  #: of Student's t, for intervals of 95 %
ONE_RUN = "keep one run of a seed, or name what differs in the method"  #: else they are pooled
POWER, MOST_SEEDS = 0.8, 1000  #: a test's chance to see an effect, and with how many seeds at most


def summarize(frame: pd.DataFrame, by: str | Sequence[str], value: str) -> pd.DataFrame:
    """Average ``value`` over the rows of each group, with a 95 % t interval.

    Returns: a row per group in order of appearance: ``by``, ``mean``, ``low``, ``high``, ``n``
        (rows), ``interval`` ("t", or why there is none).
    Raises: ValueError: unknown column.
    """
    keys = [by] if isinstance(by, str) else list(by)
    check_columns("summarize", frame, [*keys, value])
    rows = []
    for key, group in frame.groupby(keys, sort=False, dropna=False):
        values = group[value].to_numpy(dtype=float)
        low, high, kind = t_interval(values)
        rows.append((*key, values.mean(), low, high, len(values), kind))
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "n", "interval"])


def mean_over_runs(
    frame: pd.DataFrame, by: list[str], column: str, *, is_geometric: bool = False
) -> pd.DataFrame:
    r"""Average ``column`` over the runs of each group, with a 95 % t interval.

    Several rows of one run in a group count as one, their mean.  A geometric mean,
    :math:`\exp(\bar l \pm t_{n-1}\,s_l/\sqrt n)` with :math:`l = \log y`, is for positive
    quantities that seeds multiply, such as counts: its interval stays above 0.

    Args:
        frame: with the columns ``by``, ``run`` and ``column``.
    Returns: a row per group: ``by``, ``mean``, ``low``, ``high``, ``n``.
    Raises: ValueError: a value <= 0 has no geometric mean.
    """
    values = frame[column].astype(float)
    if is_geometric and (values <= 0).any():
        raise ValueError(f"{column!r} has a value of {values.min():g}; it needs > 0")
    if is_geometric:
        values = values.map(np.log)
    keys = list(dict.fromkeys([*by, "run"]))
    of_runs = frame[keys].assign(value=values).groupby(keys, sort=False, dropna=False)["value"]
    means = of_runs.agg(lambda rows: rows.to_numpy().mean())  # NaN where a row is
    summary = summarize(means.reset_index(), by, "value")[[*by, "mean", "low", "high", "n"]]
    if is_geometric:
        summary[["mean", "low", "high"]] = np.exp(summary[["mean", "low", "high"]])
    return summary


def paired_difference(
    frame: pd.DataFrame, value: str, by: str = "method", baseline: str = "adamw"
) -> pd.DataFrame:
    r"""Average the paired differences of ``value`` to the baseline, with a 95 % t interval.

    :math:`d_s = y_s - y_s^{base}`, :math:`\bar d \pm t_{n-1}\,s_d/\sqrt n`: what a seed does to
    both (initial weights, order of the data) cancels.  Negative: lower than the baseline.

    Returns: a row per other method: ``by``, ``baseline``, ``mean``, ``low``, ``high``, ``n``
        (pairs), ``p_value`` (two-sided), ``unpaired`` (runs left out without a partner),
        ``interval``.
    Raises: ValueError: the baseline is absent, or a method has two rows for one seed.
    """
    check_columns("paired_difference", frame, [value, by, "seed"])
    if frame.duplicated([by, "seed"]).any():
        raise ValueError(f"paired_difference: several rows for one ({by}, seed); keep one a run")
    methods = list(frame[by].unique())
    if baseline not in methods:
        raise ValueError(f"baseline={baseline!r}: expected one of {', '.join(map(str, methods))}")
    runs = {m: frame[frame[by] == m].set_index("seed")[value].astype(float) for m in methods}
    base = runs.pop(baseline)
    rows = []
    for method, run in runs.items():
        d = (run - base).loc[run.index.intersection(base.index)].to_numpy()
        low, high, kind = t_interval(d)
        p = float(scipy.stats.ttest_1samp(d, 0.0).pvalue) if kind == "t" else nan
        mean, unpaired = float(d.mean()) if len(d) else nan, len(run) + len(base) - 2 * len(d)
        rows.append((method, baseline, mean, low, high, len(d), p, unpaired, kind))
    columns = [by, "baseline", "mean", "low", "high", "n", "p_value", "unpaired", "interval"]
    return pd.DataFrame(rows, columns=columns)


def holm(p_values: ArrayLike) -> Floats:
    r"""Adjust p values for testing several hypotheses (Holm's step-down).

    With :math:`p_{(1)} \le \dots \le p_{(m)}`:
    :math:`\tilde p_{(k)} = \max_{j \le k} \min(1, (m - j + 1)\,p_{(j)})`.  Rejecting where
    :math:`\tilde p \le \alpha` keeps the chance of any false rejection at most :math:`\alpha`.

    Args:
        p_values: in [0, 1]; NaN is a hypothesis that was not tested: it stays and does not count.
    Returns: adjusted values, in the order given.
    Raises: ValueError: a value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    tested = ~np.isnan(p)
    if ((p[tested] < 0) | (p[tested] > 1)).any():
        raise ValueError(f"p_values={p.tolist()}: expected values in [0, 1], or NaN")
    order = np.argsort(p[tested], kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * p[tested][order]))
    result = np.full(p.shape, nan)
    result[tested] = adjusted
    return result


def seeds_needed(effects: Sequence[float], levels: Sequence[float]) -> int | None:
    r"""Return the fewest seeds with which two-sided one-sample t tests see all of the effects.

    With :math:`n` seeds and an effect of :math:`d` standard deviations, t has the noncentrality
    :math:`d\sqrt n`; a test's power is the chance that it exceeds the quantile of its level.  Of
    independent effects, the product of the powers has to be `POWER`.

    Args:
        effects: d, such as the mean paired difference over its standard deviation; one that is
            NaN or not above 0 is never seen.
        levels: of each test, in (0, 1).
    Returns: n >= 2, or None if `MOST_SEEDS` are too few.
    """
    if not all(d > 0 for d in effects):
        return None
    n = np.arange(2, MOST_SEEDS + 1)
    d, level = np.array([np.minimum(effects, 100.0), levels])[:, :, None]  # more is seen anyway
    powers = scipy.stats.nct.sf(scipy.stats.t.isf(level / 2, n - 1), n - 1, d * np.sqrt(n))
    enough = n[powers.prod(axis=0) >= POWER]
    return int(enough[0]) if len(enough) else None


@dataclass(frozen=True)
class PowerLaw:
    r""":math:`y = a\,x^{-b} + c` with the interval of the exponent :math:`b`."""

    coefficient: float
    exponent: float
    low: float
    high: float
    floor: float
    r_squared: float  # of log(y - c) against log(x)
    n: int

    def __call__(self, x: ArrayLike) -> Floats:
        """The curve at ``x``."""
        return self.coefficient * np.asarray(x, dtype=float) ** -self.exponent + self.floor


def power_law(x: ArrayLike, y: ArrayLike, floor: float = 0.0) -> PowerLaw:
    r"""Least squares of :math:`\log(y - c) = \log a - b \log x`, 95 % t interval, n - 2 degrees.

    It assumes independent errors of equal relative size.  Points along one training curve are not
    independent: fit each seed by itself, then :func:`summarize` the exponents.

    Args:
        x: > 0, such as tokens.
        y: > ``floor``, such as loss [nat].
        floor: :math:`c`, the irreducible part of ``y``, taken as known.
    Raises: ValueError: fewer than two distinct ``x``, or a value that has no logarithm.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(np.unique(x)) < 2:
        raise ValueError(f"power_law: shapes {x.shape}, {y.shape}; expected vectors, 2 distinct x")
    if not ((x > 0).all() and (y > floor).all()):
        least = f"min x={x.min():g}, min y={y.min():g}"
        raise ValueError(f"power_law: {least}; expected x > 0 and y > floor={floor:g}")
    fit = scipy.stats.linregress(np.log(x), np.log(y - floor))
    half = scipy.stats.t.ppf(QUANTILE, len(x) - 2) * fit.stderr if len(x) > 2 else nan
    a, b = float(np.exp(fit.intercept)), -float(fit.slope)
    return PowerLaw(a, b, b - half, b + half, floor, float(fit.rvalue**2), len(x))


def at_equal(
    history: pd.DataFrame, x: str = "tokens", y: str = "val_loss", points: int | None = None
) -> pd.DataFrame:
    """Interpolate ``y`` of all runs on one grid of ``x``, up to the smallest budget.

    Linear between a run's own points, never beyond them.  Rows without ``y`` are not points: a run
    that stopped early, or whose ``y`` turned NaN, sets the budget for all.

    Args:
        history: one row per record, in order; ``method`` and ``seed`` tell runs apart.
        x: what the runs are compared at: tokens, steps, seconds.
        points: evenly spaced; None: all points that some run has, so that equal grids stay exact.
    Returns: a row per run and grid point: ``method``, ``seed``, ``x``, ``y``.
    Raises: ValueError: the runs have no ``x`` in common, or ``x`` does not grow within a run.
    """
    keys = ["method", "seed"]
    check_columns("at_equal", history, [*keys, x, y])
    runs = dict(iter(history[[*keys, x, y]].groupby(keys, sort=False)))
    for key, run in runs.items():
        runs[key] = run = run.dropna(subset=[x, y]).astype({x: float, y: float})
        if run.empty:
            raise ValueError(f"at_equal: run {key} has no {y}; leave it out or evaluate it")
        if not (run[x].diff().iloc[1:] > 0).all():
            raise ValueError(f"at_equal: {x} does not grow within run {key}; {ONE_RUN}")
    low = max((run[x].iloc[0] for run in runs.values()), default=nan)
    high = min((run[x].iloc[-1] for run in runs.values()), default=nan)
    if not low <= high:
        raise ValueError(f"at_equal: no common {x}: latest start {low:g}, earliest end {high:g}")
    grid = np.unique(np.concatenate([run[x] for run in runs.values()]))
    grid = grid[(grid >= low) & (grid <= high)]
    grid = grid if points is None else np.linspace(low, high, points)
    aligned = [
        pd.DataFrame(dict(zip(keys, key, strict=True)) | {x: grid, y: np.interp(grid, r[x], r[y])})
        for key, r in runs.items()
    ]
    return pd.concat(aligned, ignore_index=True)


def t_interval(values: Floats) -> tuple[float, float, str]:
    n, num_bad = len(values), int((~np.isfinite(values)).sum())
    if n < 2:
        return nan, nan, f"none: {n} run" if n else "none: no run"
    if num_bad:
        return nan, nan, f"none: {num_bad} of {n} runs not finite"
    if np.ptp(values) <= 1e-12 * np.abs(values).max():  # but for rounding
        return float(values[0]), float(values[0]), f"none needed: {n} equal runs"
    quantile = scipy.special.stdtrit(n - 1, QUANTILE)  # scipy.stats loads for a second
    half = float(quantile * values.std(ddof=1) / np.sqrt(n))
    return float(values.mean()) - half, float(values.mean()) + half, "t"


def check_columns(what: str, frame: pd.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in frame.columns:
            have = ", ".join(map(str, frame.columns))
            raise ValueError(f"{what}: no column {column!r}; the frame has {have}")


def outline(values: Floats, limit: int) -> NDArray[np.intp]:
    """Return the places of at most ``limit`` values that show the peaks of all, in order.

    They are the first, the last, and the lowest and highest of equal stretches.  A stretch without
    a value stays as a gap: one place, of a NaN.
    """
    if len(values) <= limit:
        return np.arange(len(values))
    low, high = (np.where(np.isnan(values), end, values) for end in (np.inf, -np.inf))
    whole = (np.arange(len(values)), low, high)
    stretches = (np.array_split(each, limit // 2 - 1) for each in whole)
    kept = {0, len(values) - 1}
    for places, lows, highs in zip(*stretches, strict=True):
        kept |= {int(places[lows.argmin()]), int(places[highs.argmax()])}
    return np.array(sorted(kept))
