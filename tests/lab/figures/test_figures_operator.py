"""What the figures of operator learning say about known data."""

import math

import numpy as np
import pandas as pd
import pytest

from gqc_lab.figures import operator as figures

PARTS = ("encoder", "approximator", "decoder")


def fields():
    x = np.arange(128) / 128
    t = np.arange(5)[:, None] / 10
    truth = np.sin(2 * math.pi * (x - t)) + 0.1 * np.sin(2 * math.pi * 5 * x)
    return truth, truth + 0.05 * np.cos(2 * math.pi * x)


def epochs():
    rows = []
    for k, method in enumerate(("baseline", "fixed")):
        for seed in (0, 1):
            for epoch in range(-2, 5):
                norms = {f"grad_norm/{p}": 10.0 ** (k - i) for i, p in enumerate(PARTS)}
                row = {"method": method, "seed": seed, "epoch": epoch, "grad_norm": 2.0, **norms}
                rows.append(row | {"loss/forward": math.inf if epoch == 3 else 2.0 + seed})
    return pd.DataFrame(rows)


def results():
    rows = [("calm", w, w, 0) for w in (0.01, 0.1, 1.0)]
    rows += [("wild", 0.01, 5.0, 0), ("wild", 0.1, 1e6, 0), ("wild", 1.0, None, 7)]
    return pd.DataFrame(
        rows, columns=["variant", "inverse_weight", "max_grad_norm", "num_not_finite"]
    )


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


DRAWN = {
    "space_time": lambda: figures.space_time(*fields()),
    "spectra": lambda: figures.spectra(*fields(), [0, 4]),
    "norms_by_part": lambda: figures.norms_by_part(epochs(), {"fixed": 0.3}),
    "over_epochs": lambda: figures.over_epochs(epochs(), {"loss/forward": "forward"}, "title"),
    "against_weight": lambda: figures.against_weight(results()),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_deterministic_and_name_their_axes(name):
    figure = DRAWN[name]()
    assert figure.to_json() == DRAWN[name]().to_json()
    assert "bdata" not in figure.to_json()
    assert figure.layout.title.text
    axes = [figure.layout[a] for a in figure.layout if a.startswith(("xaxis", "yaxis"))]
    assert any(axis.title.text for axis in axes)


def test_space_time_shows_truth_prediction_and_their_difference():
    truth, predicted = fields()
    left, middle, right = figures.space_time(truth, predicted).data
    np.testing.assert_allclose(np.array(left.z), truth[:, ::2], atol=1e-4)
    np.testing.assert_allclose(np.array(middle.z), predicted[:, ::2], atol=1e-4)
    np.testing.assert_allclose(np.array(right.z), (predicted - truth)[:, ::2], atol=1e-4)
    assert list(left.y) == [0, 0.1, 0.2, 0.3, 0.4]
    layout = figures.space_time(truth, predicted).layout
    assert layout.coloraxis.cmin == -layout.coloraxis.cmax  # 0 is white
    assert layout.coloraxis2.cmax == pytest.approx(0.05)
    with pytest.raises(
        ValueError, match=r"truth of shape \(5, 128\), predicted of shape \(4, 128\)"
    ):
        figures.space_time(truth, predicted[1:])


def test_spectra_are_amplitudes():
    figure = figures.spectra(*fields(), [2])
    (truth,) = named(figure, "truth, t = 0.2")
    assert (truth.x[0], truth.x[4]) == (1, 5)
    assert (truth.y[0], truth.y[4]) == pytest.approx((1, 0.1))


def test_norms_have_a_panel_a_method_and_a_bound_where_given():
    figure = figures.norms_by_part(epochs(), {"fixed": 0.3})
    assert [a.text for a in figure.layout.annotations] == ["baseline", "fixed"]
    for part in PARTS:
        assert len(named(figure, part)) == 2
    (bound,) = named(figure, "bound")
    assert set(bound.y) == {0.3}
    assert [t.showlegend for t in named(figure, "encoder")] == [True, False]


def test_epochs_are_averaged_over_seeds_and_infinite_values_are_gaps():
    figure = figures.over_epochs(epochs(), {"loss/forward": "forward"}, "title")
    (fixed,) = named(figure, "fixed")
    assert list(fixed.x) == [0, 1, 2, 3, 4]
    assert list(fixed.y) == [2.5, 2.5, 2.5, None, 2.5]


@pytest.mark.parametrize("is_left_out", [True, False])
def test_an_epoch_without_one_of_the_runs_is_a_gap(is_left_out):
    frame = epochs()
    is_lost = (frame["method"] == "fixed") & (frame["seed"] == 1) & (frame["epoch"] >= 2)
    assert is_lost.any()
    lost = frame[~is_lost]
    if not is_left_out:
        lost = frame.assign(**{"loss/forward": frame["loss/forward"].mask(is_lost, np.inf)})
    (fixed,) = named(figures.over_epochs(lost, {"loss/forward": "forward"}, "title"), "fixed")
    assert list(fixed.y) == [2.5, 2.5, None, None, None]


def test_runs_with_an_infinite_norm_are_crosses_above_the_others():
    frame = results()
    frame.loc[frame["num_not_finite"] > 0, "max_grad_norm"] = math.inf
    (lost,) = named(figures.against_weight(frame), "wild: NaN or infinite")
    assert list(lost.x) == [1]
    assert lost.y[0] > 1e6


def test_lost_runs_are_crosses():
    figure = figures.against_weight(results())
    (wild,) = named(figure, "wild")
    assert (list(wild.x), list(wild.y)) == ([0.01, 0.1], [5, 1e6])
    (lost,) = named(figure, "wild: NaN or infinite")
    assert (list(lost.x), lost.marker.symbol) == ([1], "x")
    assert lost.y[0] > 1e6


def test_curves_and_their_limit():
    frame = pd.DataFrame({"name": "a", "epoch": [0, 1], "weight": [0.0, 0.5]})
    figure = figures.curves(frame, "weight", "title", "weight", limit=0.05)
    assert list(figure.data[0].y) == [0, 0.5]
    assert figure.layout.shapes[0].y0 == 0.05
    with pytest.raises(ValueError, match="curves: no column 'share'"):
        figures.curves(frame, "share", "title", "share")
