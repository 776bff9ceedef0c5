"""Figures of comparisons show the numbers of their frames."""

import json

import numpy as np
import pandas as pd
import pytest

from gqc.lab.analysis_comparisons import performance_profiles, probability_of_improvement
from gqc.lab.figures import comparisons as figures


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    rows = [
        (method, seed, rng.normal(center, 0.1))
        for method, center in (("adamw", 1.5), ("gnts", 1.6), ("gns", 1.4))
        for seed in range(10)
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "val_loss"])


def test_profiles_are_drawn_as_steps_in_their_bands(frame):
    profiles = performance_profiles(frame, "val_loss", thresholds=21)
    figure = figures.performance_profile(profiles, "val_loss")
    lines = [trace for trace in figure.data if trace.name]
    assert [line.name for line in lines] == ["adamw: 10 runs", "gnts: 10 runs", "gns: 10 runs"]
    for line, (_, curve) in zip(lines, profiles.groupby("method", sort=False), strict=True):
        assert line.y == pytest.approx(tuple(curve["fraction"]), abs=1e-4)
        assert line.x == pytest.approx(tuple(curve["val_loss"]), rel=1e-4)
        assert line.line.shape == "hv"
    bands = [trace for trace in figure.data if trace.fill == "tonexty"]
    assert [band.y for band in bands][1] == pytest.approx(
        tuple(profiles.loc[profiles["method"] == "gnts", "low"]), abs=1e-4
    )
    assert figure.layout.xaxis.title.text == "validation loss [nat/token]"
    assert "at or below" in figure.layout.yaxis.title.text
    higher = figures.performance_profile(profiles, "val_loss", is_lower_better=False)
    assert {trace.line.shape for trace in higher.data} == {"vh"}
    assert "at or above" in higher.layout.yaxis.title.text


def test_many_methods_have_no_bands(frame):
    more = pd.concat([frame, frame.assign(method="mht")])
    figure = figures.performance_profile(performance_profiles(more, "val_loss"), "val_loss")
    assert [trace.fill for trace in figure.data] == [None] * 4


def test_improvement_is_a_point_in_its_interval(frame):
    probabilities = probability_of_improvement(frame, "val_loss")
    figure = figures.improvement(probabilities)
    (points,) = figure.data
    rows = probabilities.iloc[::-1]
    assert points.x == pytest.approx(tuple(rows["probability"]), abs=1e-4)
    assert points.error_x.array == pytest.approx(
        tuple(rows["high"] - rows["probability"]), abs=1e-4
    )
    assert points.y == ("gns (10 runs)", "gnts (10 runs)")
    assert "adamw" in figure.layout.title.text
    (line,) = figure.layout.shapes
    assert line.x0 == 0.5


def test_a_missing_interval_is_left_out(frame):
    few = frame[frame["seed"] < 1]
    figure = figures.improvement(probability_of_improvement(few, "val_loss"))
    assert figure.data[0].error_x.array == (None, None)
    assert figure.data[0].text == ("none: 1 run",) * 2


def test_the_same_data_give_the_same_json(frame):
    def drawn():
        profiles = performance_profiles(frame, "val_loss")
        return figures.performance_profile(profiles, "val_loss").to_json()

    assert drawn() == drawn()
    assert json.loads(drawn())


def test_missing_columns_and_rows_are_named(frame):
    profiles = performance_profiles(frame, "val_loss")
    with pytest.raises(ValueError, match="no column 'fraction'"):
        figures.performance_profile(profiles.drop(columns="fraction"), "val_loss")
    probabilities = probability_of_improvement(frame, "val_loss")
    with pytest.raises(ValueError, match="no column 'low'"):
        figures.improvement(probabilities.drop(columns="low"))
    with pytest.raises(ValueError, match="no rows"):
        figures.improvement(probabilities.iloc[:0])
