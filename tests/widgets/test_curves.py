"""Curves that are thinned while they grow, against the whole curve."""

import math
import time

import numpy as np
import pytest

from gqc_lab.studies import pretraining
from gqc_widgets.curves import LIMIT, SMOOTHING, Curves, Thinned


@pytest.mark.parametrize("n", [1, 2, 7, 31, 32, 100, 1000, 12345])
@pytest.mark.parametrize("limit", [8, 64, 601])
def test_it_keeps_the_ends_and_the_peaks_in_order(n, limit):
    y = np.random.default_rng(n).normal(size=n)
    curve = Thinned(limit)
    for i in range(n):
        curve.add(i, y[i])
    xs, ys = curve.points()
    assert len(xs) == len(ys) <= limit
    assert (xs[0], xs[-1]) == (0, n - 1)
    assert xs == sorted(set(xs))
    assert ys == [y[int(x)] for x in xs]  # each is a point of the curve
    assert (min(ys), max(ys)) == (y.min(), y.max())
    if 2 * n < limit - 2:
        assert len(xs) == n


def test_stretches_are_equal_so_that_every_peak_stays_visible():
    curve = Thinned(64)
    for i in range(10_000):
        curve.add(i, 1.0 if i % 1000 == 500 else 0.0)
    xs, ys = curve.points()
    assert [x for x, y in zip(xs, ys, strict=True) if y == 1.0] == list(range(500, 10_000, 1000))
    assert max(np.diff(xs)) <= 2 * 10_000 / 15  # at least half of the 31 stretches are in use


def test_points_without_a_number_are_left_out():
    curve = Thinned()
    for i, y in enumerate([None, 1.0, math.nan, math.inf, 2.0]):
        curve.add(i, y)
    assert curve.points() == ([1.0, 4.0], [1.0, 2.0])
    assert Thinned().points() == ([], [])


@pytest.mark.parametrize("limit", [7, math.nan])
def test_a_limit_that_cannot_hold_a_curve_is_refused(limit):
    with pytest.raises(ValueError, match="limit="):
        Thinned(limit)


def record(i, **more):
    return {"tokens": i, "loss": 3.0, "stepped": False, **more}


def test_the_smoothed_loss_is_a_bias_corrected_average():
    losses = [4.0, 2.0, 5.0, math.nan, 1.0]
    curves = Curves("tokens", [record(i, loss=loss) for i, loss in enumerate(losses)])
    seen = [loss for loss in losses if not math.isnan(loss)]
    weights = [SMOOTHING ** (len(seen) - 1 - i) for i in range(len(seen))]
    expected = sum(w * v for w, v in zip(weights, seen, strict=True)) / sum(weights)
    assert curves.points("smooth_loss")[1][-1] == pytest.approx(expected, rel=1e-13)
    assert curves.points("smooth_loss")[1][0] == 4.0


def test_norms_and_draws_are_of_steps_and_forced_ones_are_marked():
    fields = {"gradient_norm_threshold": 1.0, "noise_scale": None, "val_loss": None}
    records = [
        record(1, num_draws=1, grad_norm=2.0, **fields),
        record(2, num_draws=2, grad_norm=0.5, **fields) | {"stepped": True},
        record(3, num_draws=9, grad_norm=1.5, **fields) | {"stepped": True, "val_loss": 2.5},
    ]
    curves = Curves("tokens", records)
    assert curves.points("grad_norm") == ([2.0, 3.0], [0.5, 1.5])
    assert curves.points("num_draws") == ([2.0, 3.0], [2.0, 9.0])
    assert curves.points("forced") == ([3.0], [1.5])
    assert curves.points("val_loss") == ([3.0], [2.5])
    assert curves.points("gradient_norm_threshold")[0] == [1.0, 2.0, 3.0]
    assert curves.points("noise_scale") == ([], [])


def test_what_a_real_run_records_is_drawn():
    experiment = pretraining.build(pretraining.config("smoke", tokens=20 * 512))
    curves = Curves(experiment.unit, experiment)
    history = experiment.history
    assert curves.points("loss")[1] == history["loss"].tolist()
    steps = history[history["stepped"]]
    assert curves.points("grad_norm")[1] == steps["grad_norm"].tolist()
    assert curves.points("val_loss")[1] == history["val_loss"].dropna().tolist()
    again = Curves(experiment.unit, history.to_dict("records"))  # as after a resume
    assert all(again.points(name) == curves.points(name) for name in Curves.NAMES)


def test_a_record_costs_the_same_after_an_hour():
    curves = Curves("tokens")

    def seconds(start):
        began = time.perf_counter()
        for i in range(start, start + 3000):
            curves.add(record(i, loss=3 + math.sin(i)))
        return time.perf_counter() - began

    first = min(seconds(0), seconds(3000))
    for i in range(6000, 100_000):
        curves.add(record(i, loss=3 + math.sin(i)))
    last = min(seconds(100_000), seconds(103_000))
    assert last < 5 * first  # a cost in proportion to the length would be 25 times
    assert len(curves.points("loss")[0]) <= LIMIT
