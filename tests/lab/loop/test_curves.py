"""Columns that grow, and curves thinned of them, against the whole curve."""

import math

import numpy as np
import pandas as pd
import pytest

from gqc_lab import Live
from gqc_lab.loop.curves import LIMIT, Curves, smooth, thin
from gqc_lab.studies import pretraining

NAN = math.nan


@pytest.mark.parametrize("n", [1, 2, 7, 31, 32, 100, 1000, 12345])
@pytest.mark.parametrize("limit", [8, 64, 601])
def test_it_keeps_the_ends_and_the_peaks_in_order(n, limit):
    y = np.random.default_rng(n).normal(size=n)
    xs, ys = thin(np.arange(n), y, limit)
    assert len(xs) == len(ys) <= limit
    assert (xs[0], xs[-1]) == (0, n - 1)
    assert (np.diff(xs) > 0).all()
    assert (ys == y[xs]).all()  # each is a point of the curve
    assert (min(ys), max(ys)) == (y.min(), y.max())


def test_stretches_are_equal_so_that_every_peak_stays_visible():
    y = np.where(np.arange(10_000) % 1000 == 500, 1.0, 0.0)
    xs, ys = thin(np.arange(10_000), y, 64)
    assert xs[ys == 1].tolist() == list(range(500, 10_000, 1000))


def test_missing_data_stays_a_gap():
    y = np.ones(10_000)
    y[3000:6000] = NAN
    xs, ys = thin(np.arange(10_000), y, 64)
    inside = (xs >= 3000) & (xs < 6000)
    assert inside.sum() > 5
    assert np.isnan(ys[inside]).all()
    assert np.isfinite(ys[~inside]).all()


def test_the_smoothed_curve_is_a_bias_corrected_average():
    losses = np.array([4.0, 2.0, 5.0, NAN, 1.0, math.inf])
    seen, decay = [4.0, 2.0, 5.0, 1.0], 0.95
    weights = [decay ** (3 - i) for i in range(4)]
    expected = sum(w * v for w, v in zip(weights, seen, strict=True)) / sum(weights)
    found = smooth(losses, 20)
    assert found[4] == pytest.approx(expected, rel=1e-13)
    assert found[0] == 4.0  # no offset at the start
    assert np.isnan(found[[3, 5]]).all()


def test_what_a_run_records_is_drawn():
    experiment = pretraining.build(pretraining.config("smoke", tokens=20 * 512))
    curves = Curves(experiment)
    for _ in experiment:
        curves.read()
    history = experiment.history
    assert curves.points("loss")[1].tolist() == history["loss"].tolist()
    steps = history[history["stepped"]]
    assert curves.points("grad_norm")[1].tolist() == steps["grad_norm"].tolist()
    assert curves.points("val_loss")[1].tolist() == history["val_loss"].dropna().tolist()
    above = steps[steps["grad_norm"] > steps["gradient_norm_threshold"]]
    assert curves.points("forced")[1].tolist() == above["grad_norm"].tolist()
    again = Curves(experiment)
    again.read()
    for name in (*again.names, "smooth loss", "forced"):
        pd.testing.assert_series_equal(*(pd.Series(c.points(name)[1]) for c in (curves, again)))


def test_a_million_records_of_a_loop_are_read_once():
    """By the work that is done, not by the clock: an update reads the new records alone."""
    import torch

    live = Live(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    columns, n = live.experiment._columns, 1_000_000
    columns |= {"microbatch": list(range(1, n + 1)), "loss": [1.0] * n}
    live.experiment.microbatch = n
    live.curves.read()
    asked, plain = [], live.experiment.column
    live.experiment.column = lambda name, start=0: asked.append(start) or plain(name, start)
    live.curves.read()
    assert asked == [n - 1] * 2
    assert len(live.curves.points("loss")[0]) <= LIMIT


def test_a_curve_is_whole_while_the_training_thread_reads_more():
    import torch

    live = Live(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    log = lambda count: [live.log(loss=float(i)) for i in live(range(count))]  # noqa: E731
    log(3)
    curves, plain, asked = live.curves, live.curves.column, []
    curves.read()

    def column(name):
        found = plain(name)
        asked.append(name) or log(2)
        curves.read()
        return found

    curves.column = column
    x, y = curves.points("loss")
    assert asked[:2] == ["microbatch", "loss"]
    assert (x.tolist(), y.tolist()) == ([1, 2, 3], [0, 1, 2])


def test_a_number_that_begins_to_change_has_its_past():
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 6, 0.1)
    live = Live(optimizer, 12)
    for i in live(range(12)):
        optimizer.step()
        schedule.step()
        live.log(loss=float(i))
        live.curves.read()
    assert live.curves.column("lr").tolist() == live.history["lr"].tolist()
    assert live.curves.column("lr")[[0, -1]] == pytest.approx([0.1, 0.01])
