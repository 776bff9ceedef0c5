"""Statistics against closed forms, scipy, brute force and simulated coverage."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gqc_lab.stats.analysis import (
    at_equal,
    holm,
    mean_over_runs,
    paired_difference,
    power_law,
    summarize,
)


def runs(**columns):
    """Tidy frame: one row per (method, seed), ``y`` from each method's list."""
    rows = [(m, s, y) for m, ys in columns.items() for s, y in enumerate(ys)]
    return pd.DataFrame(rows, columns=["method", "seed", "y"])


def test_summarize_equals_the_textbook_t_interval():
    # n = 4, mean 2.5, s = sqrt(5/3); t_{0.975, 3} = 3.182446305 (tables)
    row = summarize(runs(a=[1.0, 2.0, 3.0, 4.0]), "method", "y").iloc[0]
    half = 3.182446305 * math.sqrt(5 / 3) / 2
    assert (row["mean"], row["n"], row["interval"]) == (2.5, 4, "t")
    assert row["low"] == pytest.approx(2.5 - half, rel=1e-9)
    assert row["high"] == pytest.approx(2.5 + half, rel=1e-9)


def test_summarize_agrees_with_scipy_for_each_group():
    values = np.random.default_rng(0).normal(3, 2, (3, 7))
    frame = runs(a=values[0], b=values[1], c=values[2])
    summary = summarize(frame, "method", "y")
    assert list(summary["method"]) == ["a", "b", "c"]
    for row, v in zip(summary.itertuples(), values, strict=True):
        expected = stats.t.interval(0.95, 6, loc=v.mean(), scale=stats.sem(v))
        assert (row.low, row.high) == pytest.approx(expected, rel=1e-12)


def test_one_run_has_no_interval_and_says_so():
    row = summarize(runs(a=[1.5]), "method", "y").iloc[0]
    assert row["mean"] == 1.5
    assert math.isnan(row["low"])
    assert math.isnan(row["high"])
    assert row["interval"] == "none: 1 run"


def test_a_diverged_run_is_not_dropped():
    row = summarize(runs(a=[1.0, math.nan, 2.0]), "method", "y").iloc[0]
    assert math.isnan(row["mean"])
    assert math.isnan(row["low"])
    assert (row["n"], row["interval"]) == (3, "none: 1 of 3 runs not finite")


def test_equal_runs_have_a_point_and_say_why():
    row = summarize(runs(a=[7.0] * 5), "method", "y").iloc[0]
    assert (row["low"], row["high"], row["interval"]) == (7.0, 7.0, "none needed: 5 equal runs")
    frame = runs(a=[0.1, 0.2, 0.3], b=[0.3, 0.4, 0.5])  # equal differences but for rounding
    row = paired_difference(frame, "y", "method", "a").iloc[0]
    assert row["interval"] == "none needed: 3 equal runs"
    assert row["low"] == row["high"] == pytest.approx(0.2)
    assert math.isnan(row["p_value"])


def test_summarize_keeps_keys_of_several_columns_and_missing_ones():
    frame = runs(a=[1.0, 2.0], b=[3.0, 4.0]).assign(lr=[None, None, 0.1, 0.1])
    summary = summarize(frame, ["method", "lr"], "y")
    assert list(summary["mean"]) == [1.5, 3.5]
    assert math.isnan(summary["lr"][0])


def coverage(draw, truth, n, repeats):
    """Share of ``repeats`` intervals over ``n`` runs each that contain ``truth``."""
    frame = pd.DataFrame({"group": np.repeat(np.arange(repeats), n), "y": draw(repeats * n)})
    s = summarize(frame, "group", "y")
    return ((s["low"] <= truth) & (truth <= s["high"])).mean()


@pytest.mark.parametrize("n", [2, 5, 9, 12])
def test_t_interval_covers_what_it_promises(n):
    rng = np.random.default_rng(n)
    # exact for normal runs; 3000 repeats have a standard error of 0.004, so 0.016 is four of them
    assert coverage(rng.standard_normal, 0.0, n, 3000) == pytest.approx(0.95, abs=0.016)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "metod"}, "no column 'metod'"),
        ({"value": "loss"}, "no column 'loss'"),
    ],
)
def test_summarize_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        summarize(runs(a=[1.0, 2.0]), **({"by": "method", "value": "y"} | arguments))


def test_paired_difference_equals_scipys_paired_t_test():
    rng = np.random.default_rng(1)
    seeds = rng.normal(0, 5, 6)  # what pairing has to cancel
    a, b = seeds + rng.normal(0, 0.1, 6), seeds + 0.3 + rng.normal(0, 0.1, 6)
    frame = runs(adamw=a, gnts=b).sample(frac=1.0, random_state=0)  # the order must not matter
    row = paired_difference(frame, "y").iloc[0]
    test = stats.ttest_rel(b, a)
    expected = test.confidence_interval(0.95)
    assert row["mean"] == pytest.approx((b - a).mean(), rel=1e-12)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert row["p_value"] == pytest.approx(test.pvalue, rel=1e-9)
    assert (row["method"], row["baseline"], row["n"], row["unpaired"]) == ("gnts", "adamw", 6, 0)


def test_runs_without_a_partner_are_counted():
    frame = runs(adamw=[1.0, 2.0, 3.0], gnts=[1.5, 2.6, 3.4, 9.0])
    row = paired_difference(frame, "y").iloc[0]
    assert (row["n"], row["unpaired"]) == (3, 1)
    assert row["mean"] == pytest.approx(0.5)


def test_one_pair_has_no_interval_and_no_p_value():
    row = paired_difference(runs(adamw=[2.0], gnts=[1.0]), "y").iloc[0]
    assert (row["mean"], row["interval"]) == (-1.0, "none: 1 run")
    assert all(math.isnan(row[k]) for k in ("low", "high", "p_value"))


def test_disjoint_seeds_have_no_difference():
    frame = runs(adamw=[2.0], gnts=[1.0]).assign(seed=[0, 1])
    row = paired_difference(frame, "y").iloc[0]
    assert (row["n"], row["unpaired"], row["interval"]) == (0, 2, "none: no run")
    assert math.isnan(row["mean"])


@pytest.mark.slow
def test_paired_interval_covers_what_it_promises():
    rng, hits, repeats = np.random.default_rng(7), 0, 600
    for _ in range(repeats):
        seeds = rng.normal(0, 3, 5)
        frame = runs(adamw=seeds + rng.normal(size=5), gnts=seeds + 1 + rng.normal(size=5))
        row = paired_difference(frame, "y").iloc[0]
        hits += row["low"] <= 1 <= row["high"]
    assert hits / repeats == pytest.approx(0.95, abs=0.036)  # four standard errors of 0.009


def test_paired_difference_names_what_is_wrong():
    with pytest.raises(ValueError, match="baseline='sgd': expected one of adamw, gnts"):
        paired_difference(runs(adamw=[1.0], gnts=[1.0]), "y", baseline="sgd")
    with pytest.raises(ValueError, match=r"several rows for one \(method, seed\)"):
        paired_difference(pd.concat([runs(adamw=[1.0]), runs(adamw=[2.0])]), "y")


def holm_rejections(p, alpha):
    """The procedure as published: walk up from the smallest p, stop at the first that fails."""
    rejected = [False] * len(p)
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > alpha / (len(p) - rank):
            break
        rejected[i] = True
    return rejected


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; the last is raised to its predecessor's
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_holm_rejects_what_the_published_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.uniform(0, 0.2, rng.integers(1, 9)).round(2)  # rounding makes ties
        adjusted = holm(p)
        for alpha in (0.011, 0.0503, 0.1007):  # not a multiple of any p, so no rounding tie
            assert (adjusted <= alpha).tolist() == holm_rejections(p, alpha)


def test_holm_does_not_count_what_was_not_tested():
    np.testing.assert_allclose(holm([0.02, math.nan, 0.01]), [0.02, math.nan, 0.02])
    assert holm([]).shape == (0,)
    with pytest.raises(ValueError, match="expected values in"):
        holm([0.5, 1.5])


def test_power_law_recovers_an_exact_curve():
    x = np.geomspace(10, 1e6, 9)
    fit = power_law(x, 4.0 * x**-0.35 + 1.7, floor=1.7)
    assert (fit.coefficient, fit.exponent) == pytest.approx((4.0, 0.35), rel=1e-9)
    assert fit.r_squared == pytest.approx(1.0)
    assert fit.high - fit.low < 1e-7  # rounding of logs of ~1e-2 relative to 1.7, not noise
    np.testing.assert_allclose(fit(x), 4.0 * x**-0.35 + 1.7, rtol=1e-9)


def test_power_law_interval_covers_what_it_promises():
    rng, x, hits, repeats = np.random.default_rng(2), np.geomspace(1, 1e4, 8), 0, 1500
    for _ in range(repeats):
        fit = power_law(x, 2 * x**-0.35 * np.exp(rng.normal(0, 0.2, 8)))
        hits += fit.low <= 0.35 <= fit.high
    assert hits / repeats == pytest.approx(0.95, abs=0.023)  # four standard errors of 0.0056


def test_power_law_through_two_points_has_no_interval():
    fit = power_law([1.0, 4.0], [8.0, 4.0])
    assert (fit.coefficient, fit.exponent) == pytest.approx((8.0, 0.5))
    assert math.isnan(fit.low)
    assert math.isnan(fit.high)


@pytest.mark.parametrize(
    ("x", "y", "floor"),
    [
        ([1, 1, 1], [1, 2, 3], 0),
        ([1, 2], [1, 2, 3], 0),
        ([0, 1], [1, 2], 0),
        ([1, 2], [1, math.nan], 0),
        ([1, 2], [3, 2], 2),
        ([], [], 0),
    ],
)
def test_power_law_refuses_what_has_no_logarithm(x, y, floor):
    with pytest.raises(ValueError, match="power_law"):
        power_law(x, y, floor)


def history(**runs_):
    """Runs given as {name: [(tokens, val_loss), ...]}; seed 0."""
    rows = [(m, 0, t, y) for m, points in runs_.items() for t, y in points]
    return pd.DataFrame(rows, columns=["method", "seed", "tokens", "val_loss"])


def test_at_equal_interpolates_up_to_the_smallest_budget():
    aligned = at_equal(history(a=[(0, 4.0), (100, 2.0)], b=[(20, 9.0), (60, 7.0)]))
    a, b = (aligned[aligned["method"] == m] for m in "ab")
    assert list(a["tokens"]) == list(b["tokens"]) == [20, 60]
    np.testing.assert_allclose(a["val_loss"], [3.6, 2.8])  # on the line from 4 at 0 to 2 at 100
    np.testing.assert_allclose(b["val_loss"], [9.0, 7.0])


def test_at_equal_on_even_points_agrees_with_numpy():
    rng = np.random.default_rng(0)
    points = {m: [(t, rng.normal()) for t in np.sort(rng.uniform(0, 50, 30))] for m in "abc"}
    aligned = at_equal(history(**points), points=17)
    low = max(p[0][0] for p in points.values())
    high = min(p[-1][0] for p in points.values())
    grid = np.linspace(low, high, 17)
    for m, p in points.items():
        got = aligned[aligned["method"] == m]
        np.testing.assert_allclose(got["tokens"], grid)
        np.testing.assert_allclose(got["val_loss"], np.interp(grid, *zip(*p, strict=True)))


def test_at_equal_skips_records_without_a_value_and_keeps_equal_grids():
    frame = history(a=[(0, None), (8, 3.0), (16, None), (24, 2.0)], b=[(8, 5.0), (24, 4.0)])
    aligned = at_equal(frame)
    assert list(aligned["tokens"]) == [8, 24, 8, 24]
    assert list(aligned["val_loss"]) == [3.0, 2.0, 5.0, 4.0]


def test_at_equal_names_what_is_wrong():
    with pytest.raises(ValueError, match="no common tokens: latest start 5, earliest end 4"):
        at_equal(history(a=[(0, 1.0), (4, 1.0)], b=[(5, 1.0), (9, 1.0)]))
    with pytest.raises(ValueError, match=r"run \('b', 0\) has no val_loss"):
        at_equal(history(a=[(0, 1.0)], b=[(0, None)]))
    for second in ([(0, 2.0)], [(1, 2.0), (3, 2.0)]):  # of another run
        with pytest.raises(ValueError, match=r"not grow within run \('a', 0\); keep one"):
            at_equal(history(a=[(0, 1.0), (2, 1.0), *second]))
    with pytest.raises(ValueError, match="no common tokens"):
        at_equal(history())


def test_a_geometric_mean_is_of_runs_and_stays_above_zero():
    frame = pd.DataFrame({"method": "a", "run": [1, 2, 3, 3], "steps": [1.0, 10.0, 50.0, 200.0]})
    row = mean_over_runs(frame, ["method"], "steps", is_geometric=True).iloc[0]
    assert (row["mean"], row["n"]) == (pytest.approx(10), 3)  # the two rows of a run: 10**2
    assert 0 < row["low"] < 10 < row["high"]
    assert mean_over_runs(frame, ["method"], "steps")["mean"].item() == pytest.approx(136 / 3)
    with pytest.raises(ValueError, match="'steps' has a value of 0; it needs > 0"):
        mean_over_runs(frame.assign(steps=0.0), ["method"], "steps", is_geometric=True)
