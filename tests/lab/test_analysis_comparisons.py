"""Comparisons of runs against brute force, scipy, closed forms and simulated coverage."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gqc.lab.analysis_comparisons import (
    clopper_pearson,
    performance_profiles,
    probability_of_improvement,
)


def runs(task="t", **columns):
    """Tidy frame: one row per (method, seed), ``y`` from each method's list."""
    rows = [(task, m, s, y) for m, ys in columns.items() for s, y in enumerate(ys)]
    return pd.DataFrame(rows, columns=["task", "method", "seed", "y"])


def test_probability_is_the_share_of_pairs_that_are_better():
    a, b = [1.0, 2.0, 2.0, 5.0], [2.0, 3.0, 0.5]
    row = probability_of_improvement(runs(gnts=a, adamw=b), "y").iloc[0]
    pairs = [(x < y) + 0.5 * (x == y) for x in a for y in b]
    assert row["probability"] == pytest.approx(sum(pairs) / 12, rel=1e-12)
    assert (row["method"], row["control"], row["n"], row["n_control"]) == ("gnts", "adamw", 4, 3)
    # Mann and Whitney's U counts the same pairs
    u = stats.mannwhitneyu(b, a).statistic
    assert row["probability"] == pytest.approx(u / 12, rel=1e-12)
    higher = probability_of_improvement(runs(gnts=a, adamw=b), "y", is_lower_better=False)
    assert higher["probability"][0] == pytest.approx(1 - row["probability"], rel=1e-12)


def test_interval_solves_newcombes_equation():
    row = probability_of_improvement(
        runs(gnts=[1.0, 2.0, 4.0, 6.0], adamw=[3.0, 5.0, 7.0]), "y", confidence=0.9
    ).iloc[0]
    p, z = row["probability"], stats.norm.ppf(0.95)
    assert row["interval"] == "Newcombe"
    for q in (row["low"], row["high"]):
        spread = 1 + 2.5 * ((1 - q) / (2 - q) + q / (1 + q))
        assert abs(p - q) == pytest.approx(z * math.sqrt(q * (1 - q) / 12 * spread), rel=1e-6)
    assert row["low"] < p < row["high"]


def test_a_clean_sweep_is_not_certain():
    row = probability_of_improvement(runs(gnts=[1.0] * 5, adamw=[2.0] * 5), "y").iloc[0]
    assert (row["probability"], row["high"]) == (1.0, 1.0)
    assert 0.5 < row["low"] < 0.8
    mirrored = probability_of_improvement(runs(gnts=[2.0] * 5, adamw=[1.0] * 5), "y").iloc[0]
    assert (mirrored["low"], mirrored["high"]) == pytest.approx((0.0, 1 - row["low"]), rel=1e-9)


def test_diverged_runs_are_the_worst_and_tie_with_each_other():
    frame = runs(gnts=[1.0, math.nan], adamw=[2.0, math.inf])
    assert probability_of_improvement(frame, "y")["probability"][0] == (1 + 1 + 0 + 0.5) / 4
    frame = runs(gnts=[1.0, math.nan], adamw=[2.0, -math.inf])
    higher = probability_of_improvement(frame, "y", is_lower_better=False)
    assert higher["probability"][0] == (0 + 1 + 0 + 0.5) / 4


@pytest.mark.parametrize(
    ("n", "delta", "expected"),
    [(3, 0.0, 0.90), (5, 0.0, 0.93), (5, 2.0, 0.96), (10, 1.0, 0.96)],
)
def test_newcombes_coverage_is_what_the_docstring_says(n, delta, expected):
    rng, truth, hits, repeats = np.random.default_rng(n), stats.norm.cdf(delta / 2**0.5), 0, 300
    for _ in range(repeats):
        frame = runs(adamw=rng.normal(delta, 1, n), gnts=rng.normal(0, 1, n))
        row = probability_of_improvement(frame, "y").iloc[0]
        hits += row["low"] <= truth <= row["high"]
    error = (expected * (1 - expected) / repeats) ** 0.5
    assert hits / repeats == pytest.approx(expected, abs=4 * error)


def test_tasks_weigh_alike_and_the_bootstrap_stays_within_them():
    rng = np.random.default_rng(0)
    easy = runs("easy", gnts=rng.normal(0, 1, 10), adamw=rng.normal(1, 1, 12))
    hard = runs("hard", gnts=rng.normal(100, 1, 20), adamw=rng.normal(100, 1, 10))
    row = probability_of_improvement(pd.concat([easy, hard]), "y", strata="task").iloc[0]
    each = [probability_of_improvement(f, "y")["probability"][0] for f in (easy, hard)]
    assert row["probability"] == pytest.approx(np.mean(each), rel=1e-12)
    assert (row["n"], row["n_control"], row["interval"]) == (30, 22, "stratified bootstrap")
    again = probability_of_improvement(pd.concat([easy, hard]), "y", strata="task").iloc[0]
    assert (row["low"], row["high"]) == (again["low"], again["high"])


def slow_bootstrap(frame, resamples, rng):
    """Resample runs within tasks, as Agarwal et al. describe it."""
    found = []
    for _ in range(resamples):
        shares = []
        for _, task in frame.groupby("task"):
            a, b = (task.loc[task["method"] == m, "y"].to_numpy() for m in ("gnts", "adamw"))
            a, b = rng.choice(a, len(a)), rng.choice(b, len(b))
            shares.append(np.mean([(x < y) + 0.5 * (x == y) for x in a for y in b]))
        found.append(np.mean(shares))
    return np.quantile(found, [0.025, 0.975])


def test_stratified_bootstrap_agrees_with_resampling_run_by_run():
    rng = np.random.default_rng(1)
    frame = pd.concat(
        runs(t, gnts=rng.normal(0, 1, 10), adamw=rng.normal(0.7, 1, 10)) for t in "ab"
    )
    row = probability_of_improvement(frame, "y", strata="task").iloc[0]
    low, high = slow_bootstrap(frame, 600, np.random.default_rng(2))
    # a 2.5 % quantile of 600 draws with this spread of 0.08 has a standard error of 0.009
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.035)


def test_stratified_bootstrap_covers_about_what_it_promises():
    rng, truth, hits, repeats = np.random.default_rng(3), stats.norm.cdf(0.7 / 2**0.5), 0, 300
    for _ in range(repeats):
        frame = pd.concat(
            runs(t, gnts=rng.normal(0, 1, 10), adamw=rng.normal(0.7, 1, 10)) for t in "abc"
        )
        row = probability_of_improvement(frame, "y", strata="task", resamples=400).iloc[0]
        hits += row["low"] <= truth <= row["high"]
    assert hits / repeats == pytest.approx(0.94, abs=0.055)  # four standard errors of 0.0137


@pytest.mark.parametrize(
    ("frame", "options", "reason"),
    [
        (runs(adamw=[1.0], gnts=[2.0, 3.0]), {}, "none: 1 run"),
        (
            pd.concat(runs(t, adamw=range(9), gnts=range(10)) for t in "ab"),
            {"strata": "task"},
            "none: a bootstrap needs 10 runs of each task",
        ),
        (
            pd.concat(runs(t, adamw=range(20, 30), gnts=range(10)) for t in "ab"),
            {"strata": "task"},
            "none: every run is better",
        ),
    ],
)
def test_no_interval_where_none_can_be_trusted(frame, options, reason):
    row = probability_of_improvement(frame, "y", **options).iloc[0]
    assert row["interval"] == reason
    assert math.isnan(row["low"])
    assert math.isnan(row["high"])


def test_profile_is_the_share_of_runs_at_a_value_or_better():
    frame = runs(a=[1.0, 2.0, 3.0, math.nan], b=[2.0, 2.0, 2.0, 2.0])
    profile = performance_profiles(frame, "y", thresholds=[0.5, 1.0, 2.0, 9.0])
    a, b = (profile[profile["method"] == m] for m in "ab")
    assert a["fraction"].tolist() == [0.0, 0.25, 0.5, 0.75]  # a diverged run reaches nothing
    assert b["fraction"].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert set(profile["n"]) == {4}
    higher = performance_profiles(frame, "y", thresholds=[0.5, 2.0, 3.0], is_lower_better=False)
    assert higher.loc[higher["method"] == "a", "fraction"].tolist() == [0.75, 0.5, 0.25]


def test_profile_thresholds_span_the_finite_values():
    profile = performance_profiles(runs(a=[1.0, math.inf], b=[3.0, 5.0]), "y", thresholds=5)
    assert profile["y"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0] * 2


def test_clopper_pearson_is_scipys_exact_interval():
    low, high = clopper_pearson(np.arange(8), 7, confidence=0.9)
    for k in range(8):
        expected = stats.binomtest(k, 7).proportion_ci(0.9, method="exact")
        assert (low[k], high[k]) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_profile_interval_covers_at_least_what_it_promises_also_over_tasks():
    rng, repeats, centers = np.random.default_rng(4), 400, (0.0, 1.0, 3.0)
    truth = np.mean([stats.norm.cdf(0.5 - c) for c in centers])
    hits = 0
    for _ in range(repeats):
        frame = pd.concat(runs(str(c), a=rng.normal(c, 1, 5)) for c in centers)
        row = performance_profiles(frame, "y", strata="task", thresholds=[0.5]).iloc[0]
        hits += row["low"] <= truth <= row["high"]
    assert hits / repeats >= 0.95 - 4 * (0.95 * 0.05 / repeats) ** 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: probability_of_improvement(f, "y", control="sgd"), "control='sgd'"),
        (lambda f: probability_of_improvement(f, "loss"), "no column 'loss'"),
        (lambda f: probability_of_improvement(f, "y", confidence=math.nan), "confidence=nan"),
        (
            lambda f: probability_of_improvement(
                pd.concat([f, runs("u", gnts=[1.0])]), "y", strata="task"
            ),
            r"method='gnts': has task \['t', 'u'\], the control has \['t'\]",
        ),
        (lambda f: performance_profiles(f, "y", strata="no"), "no column 'no'"),
        (lambda f: performance_profiles(f, "y", confidence=1.0), "confidence=1.0"),
        (lambda f: performance_profiles(f, "y", thresholds=1), "thresholds=1"),
        (
            lambda f: performance_profiles(
                pd.concat([f, runs("u", gnts=[1.0])]), "y", strata="task"
            ),
            "method='gnts': expected equally many runs of each task; t: 2, u: 1",
        ),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(runs(gnts=[1.0, 2.0], adamw=[1.0, 2.0]))
