"""What the figures of training with the variance gradient scaler say about known histories."""

import numpy as np
import pandas as pd
import pytest

from gqc_lab.figures import vgs_training as figures

METHODS = ("no scaling", "VGS, alpha 0.1")


def history():
    rows = []
    for task in ("digits", "values"):
        for optimizer in ("sgd", "adamw"):
            for k, method in enumerate(METHODS):
                for seed in (0, 1):
                    for t in range(1, 41):
                        row = {"task": task, "optimizer": optimizer, "method": method}
                        row |= {"seed": seed, "microbatch": t}
                        row["val_loss"] = 10 * k + seed + t if t % 10 == 0 else None
                        rows.append(row)
    return pd.DataFrame(rows)


def watched():
    frame = pd.DataFrame({"microbatch": range(1, 61), "vgs/unresolved": [0.0, 1.0] * 30})
    frame["would_be_factor"] = 1 / 6
    return pd.concat([frame.assign(beta=b) for b in (0.9, 0.99)])


def ratios():
    frame = pd.DataFrame({"microbatch": range(1, 61), "measured": [0.2, 0.4] * 30})
    return frame.assign(predicted=0.25, factor=1 / 6)


DRAWN = {
    figures.loss_panels: history,
    figures.resolution: watched,
    figures.update_ratio: ratios,
}


@pytest.mark.parametrize("draw", DRAWN, ids=lambda d: d.__name__)
def test_figures_are_deterministic_and_leave_the_data_alone(draw):
    frame = DRAWN[draw]()
    before = frame.copy()
    text = draw(frame).to_json()
    assert text == draw(frame).to_json()
    assert "bdata" not in text
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("draw", DRAWN, ids=lambda d: d.__name__)
def test_a_missing_column_is_named(draw):
    frame = DRAWN[draw]().drop(columns="microbatch")
    with pytest.raises(ValueError, match=f"{draw.__name__}: no column 'microbatch'"):
        draw(frame)


def test_a_panel_for_each_task_and_optimizer_with_means_over_seeds():
    figure = figures.loss_panels(history())
    titles = ["digits, sgd", "digits, adamw", "values, sgd", "values, adamw"]
    assert [a.text for a in figure.layout.annotations] == titles
    assert len(figure.data) == 8
    assert [t.name for t in figure.data if t.showlegend] == list(METHODS)
    for trace in figure.data:
        assert trace.x == (10, 20, 30, 40)
        start = 10 * METHODS.index(trace.name) + 0.5
        assert trace.y == (start + 10, start + 20, start + 30, start + 40)


def test_a_curve_ends_with_the_first_run_that_diverged():
    frame = history()
    name = METHODS[0]
    late = (frame["method"] == name) & (frame["microbatch"] > 20)
    frame["val_loss"] = frame["val_loss"].mask(late & (frame["seed"] == frame["seed"].max()))
    figure = figures.loss_panels(frame)
    assert {len(t.x) for t in figure.data if t.name == name} == {2}
    assert {len(t.x) for t in figure.data if t.name != name} == {4}


def test_resolution_is_a_moving_average_in_percent_beside_the_factor():
    figure = figures.resolution(watched(), over=2)
    share, factor = figure.data[:2]
    assert share.y[1:] == (50,) * 59
    assert factor.y == (0.16667,) * 60
    assert {t.name for t in figure.data} == {"beta 0.9", "beta 0.99"}


def test_update_ratio_is_measured_smoothed_beside_predicted():
    figure = figures.update_ratio(ratios(), over=2)
    factor, measured, predicted = figure.data
    np.testing.assert_allclose(measured.y[1:], 0.3)
    assert set(predicted.y) == {0.25}
    assert set(factor.y) == {0.16667}
