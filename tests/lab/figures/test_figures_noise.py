"""What the figures of noise scales say about measurements that are known exactly."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from gqc_lab import figures
from gqc_lab.figures import OKABE_ITO
from gqc_lab.figures.noise import (
    batch_estimates,
    draws_against_prediction,
    draws_against_threshold,
    estimates_against_truth,
    noise_scale_against,
    norm_by_draws,
)
from gqc_lab.studies.noise.streams import COLUMNS


def measured():
    """Two estimators, draws and reach, at d = 10 and 1000; one interval has no upper bound."""
    rows = []
    for dimension in (10, 1000):
        for truth in (1.0, 100.0):
            point = {"dimension": dimension, "truth": truth}
            ours = {"measured": 2 * truth, "low": truth / 2, "high": 4 * truth}
            rows.append({"measurement": "two-batch", **point, **ours})
            small = {"measured": 0.1 / dimension, "low": 0.09 / dimension, "high": 0.2 / dimension}
            rows.append({"measurement": "published", **point, **small})
        for n in (2, 8):
            draws = {"measured": n + 0.5, "low": n, "high": n + 1}
            rows.append({"measurement": "draws", "dimension": dimension, "truth": n, **draws})
        for threshold, n in [(0.5, 64), (2.0, 4)]:
            reach = {"threshold": threshold, "is_flagged": threshold < 1, "truth": n}
            draws = {"measured": n, "low": n, "high": n}
            rows.append({"measurement": "reach", "dimension": dimension, **reach, **draws})
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame.loc[(frame["measurement"] == "two-batch") & (frame["truth"] == 100), "high"] = math.inf
    return frame


def traces(figure, name):
    return [t for t in figure.data if t.name.startswith(name)]


FIGURES = [estimates_against_truth, draws_against_prediction, draws_against_threshold]


@pytest.mark.parametrize("draw", FIGURES)
def test_figures_are_deterministic_and_plain(draw):
    frame = measured()
    before = frame.copy()
    text = draw(frame).to_json()
    assert text == draw(frame).to_json()
    assert "uid" not in text
    assert "bdata" not in text
    assert "Infinity" not in text
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("draw", FIGURES)
def test_a_missing_column_is_named(draw):
    with pytest.raises(ValueError, match=f"{draw.__name__}: no column 'high'"):
        draw(measured().drop(columns="high"))


def test_estimates_are_drawn_as_they_are_and_over_the_truth():
    figure = estimates_against_truth(measured())
    plain, ratio = traces(figure, "two-batch, d = 1,000")
    assert plain.y == (2, 200)
    assert ratio.y == (2, 2)
    assert plain.error_y.arrayminus == (1.5, 150)
    assert ratio.error_y.arrayminus == (1.5, 1.5)
    assert (plain.error_y.array[0], ratio.error_y.array[0]) == (2, 2)
    (published,) = traces(figure, "published, d = 10")[:1]
    assert published.y == (0.01, 0.01)
    assert [t.x for t in traces(figure, "truth")] == [(1, 100)] * 2
    assert [t.y for t in traces(figure, "truth")] == [(1, 100), (1, 1)]


def test_a_bar_without_upper_bound_leaves_the_figure():
    figure = estimates_against_truth(measured())
    for trace, axis in zip(
        traces(figure, "two-batch, d = 10"),
        (figure.layout.yaxis, figure.layout.yaxis2),
        strict=False,
    ):
        top = 10 ** axis.range[1]
        assert trace.y[1] + trace.error_y.array[1] > 1000 * top
        assert 10 ** axis.range[0] < min(trace.y) - max(trace.error_y.arrayminus[:1])


def test_markers_of_dimensions_stand_beside_each_other():
    ten, thousand = traces(draws_against_prediction(measured()), "measured")
    assert np.sqrt(np.multiply(ten.x, thousand.x)) == pytest.approx([2, 8], rel=1e-4)
    assert (np.array(ten.x) < np.array(thousand.x)).all()
    assert {ten.marker.color, thousand.marker.color} == set(OKABE_ITO[:2])
    assert ten.y == (2.5, 8.5)


def test_what_the_statistics_call_unreachable_is_crossed():
    figure = draws_against_threshold(measured())
    (flagged,) = traces(figure, "d = 10: “unreachable”")
    (reached,) = traces(figure, "d = 10: within reach")
    assert (flagged.marker.symbol, flagged.y) == ("x", (64,))
    assert (reached.marker.symbol, reached.y) == ("circle", (4,))
    assert flagged.marker.color == reached.marker.color
    (predicted,) = traces(figure, "predicted")
    assert (predicted.x, predicted.y) == ((0.5, 2), (64, 4))


def test_unresolved_estimates_are_left_out():
    frame = measured()
    frame.loc[(frame["measurement"] == "two-batch") & (frame["truth"] == 1), "measured"] = None
    plain, _ = traces(estimates_against_truth(frame), "two-batch, d = 1,000")
    assert plain.y == (200,)


def test_a_frame_without_estimates_is_an_empty_figure_with_its_axes():
    figure = estimates_against_truth(measured().query("measurement == 'draws'"))
    assert not traces(figure, "two-batch")
    json.loads(figure.to_json())


def test_a_batch_is_drawn_by_its_means_with_t_intervals():
    one, two = measured(), measured()
    two["measured"] = 2 * one["measured"]
    figure = batch_estimates(pd.concat([one, two]), pd.DataFrame())
    plain, _ = traces(figure, "two-batch, d = 1,000")
    assert plain.y == (3, 300)
    half = 12.7062 * np.std([2, 4], ddof=1) / math.sqrt(2)  # t of 1 degree at 97.5 %
    assert plain.error_y.array[0] == pytest.approx(half, rel=1e-4)


def history():
    rows = []
    for method in ("adamw", "gns", "normtest"):
        for seed in (0, 1):
            for i in range(1, 6):
                scale = None if method == "adamw" or i == 1 else 10.0 * i + seed
                row = {"method": method, "seed": seed, "tokens": 512 * i, "noise_scale": scale}
                rows.append(row)
    return pd.DataFrame(rows)


def test_noise_scales_are_drawn_for_methods_that_have_one():
    figure = noise_scale_against(history())
    assert [t.name for t in figure.data] == ["gns", "normtest"]
    assert figure.data[0].y == (20, 30, 40, 50)
    assert figure.data[0].x == (1024, 1536, 2048, 2560)
    assert [t.line.color for t in figure.data] == list(OKABE_ITO[2:4])  # as in every other figure


def test_every_public_name_is_drawn_here():
    module = figures.noise.__name__
    named = {n for n, f in vars(figures.noise).items() if getattr(f, "__module__", "") == module}
    public = {name for name in named if not name.startswith("_")}
    assert public == {f.__name__ for f in FIGURES} | {
        "batch_estimates",
        "noise_scale_against",
        "norm_by_draws",
    }


def test_thresholds_are_drawn_over_draws_with_what_is_out_of_reach():
    table = pd.DataFrame({"draws": [1, 8], "norm": [3.0, 1.2], "expected": [3.2, 1.3]})
    figure = norm_by_draws(table, 0.9)
    names = ["threshold", "expected norm", "|G|: out of reach below"]
    assert [trace.name for trace in figure.data] == names
    assert list(figure.data[0].y) == [3.0, 1.2]
    assert list(figure.data[2].y) == [0.9, 0.9]
    with pytest.raises(ValueError, match="expected"):
        norm_by_draws(table.drop(columns="expected"), 0.9)
