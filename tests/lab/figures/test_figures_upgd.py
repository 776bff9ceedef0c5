"""What the figures of UPGD say about known data."""

import numpy as np
import pandas as pd
import pytest

from gqc_lab.figures import upgd as figures
from gqc_lab.stats.analysis import summarize

STREAMS = ("input_permuted", "label_permuted")
METHODS = ("sgd", "upgd")


def bars():
    rows = []
    for i, name in enumerate(("minmax", "max_published")):
        for step in (1, 1000):
            for left in (0.0, 0.5):
                row = {"normalization": name, "step": step, "left": left, "right": left + 0.5}
                rows += [row | {"share": 0.25 + 0.5 * i, "seed": s} for s in (0, 1)]
    return pd.DataFrame(rows)


def tasks():
    rows = []
    for stream in STREAMS:
        for k, method in enumerate(METHODS):
            for seed in (0, 1):
                for task in (1, 2, 3):
                    row = {"stream": stream, "method": method, "seed": seed, "task": task}
                    row |= {"online_accuracy": (10 * k + seed + task) / 100}
                    row |= {"plasticity": 0.5, "noise_to_signal": None if k == 0 else 2.0}
                    rows.append(row)
    return pd.DataFrame(rows)


def results():
    rows = []
    for stream in STREAMS:
        for k, method in enumerate(METHODS):
            for seed in (0, 1, 2):
                row = {"stream": stream, "method": method, "seed": seed}
                rows.append(row | {"online_accuracy": (50 + 10 * k + seed) / 100})
    return pd.DataFrame(rows)


def rates():
    frames = [
        results().assign(normalization=n, lr=lr) for n in ("minmax", "max") for lr in (0.1, 0.2)
    ]
    frame = pd.concat(frames, ignore_index=True)
    return frame[frame["method"] == "sgd"]


DRAWN = {
    figures.gate_histograms: (bars, "share"),
    figures.by_task: (tasks, "task"),
    figures.against_lr: (rates, "lr"),
}


@pytest.mark.parametrize("draw", DRAWN, ids=lambda d: d.__name__)
def test_figures_are_deterministic_and_leave_the_data_alone(draw):
    frame = DRAWN[draw][0]()
    before = frame.copy()
    text = draw(frame).to_json()
    assert text == draw(frame).to_json()
    assert "bdata" not in text
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("draw", DRAWN, ids=lambda d: d.__name__)
def test_a_missing_column_is_named(draw):
    make, column = DRAWN[draw]
    with pytest.raises(ValueError, match=f"{draw.__name__}: no column '{column}'"):
        draw(make().drop(columns=column))


def test_a_histogram_for_each_normalization_and_step_in_percent():
    figure = figures.gate_histograms(bars())
    assert [t.name for t in figure.data] == ["minmax"] * 2 + ["max_published"] * 2
    assert figure.data[0].x == (0.25, 0.75)
    assert figure.data[0].width == (0.5, 0.5)
    assert figure.data[0].y == (25, 25)
    assert figure.data[3].y == (75, 75)


def test_means_over_seeds_by_task_in_panels():
    figure = figures.by_task(tasks(), ("online_accuracy", "plasticity"))
    assert len(figure.data) == 2 * 2 * 2
    assert [t.name for t in figure.data if t.showlegend] == list(METHODS)
    first, second = figure.data[0], figure.data[2]
    assert (first.x, first.y) == ((1, 2, 3), (1.5, 2.5, 3.5))
    assert second.y == (11.5, 12.5, 13.5)
    assert figure.data[1].y == (0.5, 0.5, 0.5)
    figure = figures.by_task(tasks(), over=3, title="Accuracy", has_bands=True)
    title = "Accuracy, moving mean of 3 tasks:<br>mean over 2 seeds, bands: 95 % intervals"
    assert figure.layout.title.text == title
    smooth = figures.by_task(tasks(), over=3).data[0]
    np.testing.assert_allclose(smooth.y, (2, 2.5, 3))


def test_a_method_without_noise_has_no_line_of_it():
    figure = figures.by_task(tasks(), ("noise_to_signal",))
    lines = {t.name: t.y for t in figure.data}
    assert lines == {"sgd": (None, None, None), "upgd": (2, 2, 2)}
    assert figure.layout.yaxis.type == "log"


def test_a_band_is_that_of_the_runs_that_its_line_is_the_mean_of():
    one = pd.DataFrame({"seed": [0] * 4 + [1] * 4, "task": [1, 2, 3, 4] * 2, "method": "sgd"})
    one = one.assign(stream="input_permuted", online_accuracy=[0.2, 0.4] * 2 + [0.4, 0.2] * 2)
    band, line = figures.by_task(one, over=2, has_bands=True).data
    inner = [y for x, y in zip(band.x, band.y, strict=True) if x > 1]
    assert [*line.y[1:], *inner] == pytest.approx([30] * 9)  # both runs are at 30 % there


def test_two_settings_of_a_method_are_not_repetitions():
    both = pd.concat([tasks(), tasks()], ignore_index=True)
    with pytest.raises(ValueError, match="several rows of a seed for one task: keep one run"):
        figures.batch_tasks(results(), both)


def test_bands_are_intervals_over_seeds_in_the_unit_of_the_curve():
    (stream, *_), frame = STREAMS, tasks()
    one = frame[(frame["stream"] == stream) & (frame["method"] == "upgd")]
    first = one[one["task"] == one["task"].min()].astype({"online_accuracy": float})
    low = 100 * summarize(first, "task", "online_accuracy")["low"].item()
    band, line = figures.by_task(one, has_bands=True).data
    assert (band.fill, line.fill) == ("toself", None)
    assert band.y[-1] == pytest.approx(low, rel=1e-4)


def test_against_lr_has_a_line_for_each_normalization():
    figure = figures.against_lr(rates())
    assert [t.name for t in figure.data if t.showlegend] == ["minmax", "max"]
    assert figure.data[0].y == (51, 51)
    np.testing.assert_allclose(figure.data[0].x, np.array([0.1, 0.2]) / 1.03**0.5, rtol=1e-4)
    assert figure.layout.xaxis.type == "log"


def test_a_batch_draws_its_tasks():
    figure = figures.batch_tasks(results(), tasks())
    assert len(figure.data) == 8
