"""What the figures of the variance gradient scaler say about readings that are known."""

import math

import pandas as pd
import plotly.io as pio
import pytest

from gqc_lab import figures
from gqc_lab.studies.vgs.streams import VERSIONS

TRUTHS = {"one": 1.0, "none": 0.0, "all": math.inf}


def readings():
    """Estimators are off by 1, 2, 4, ... times; the last does not resolve "all"."""
    rows = []
    for stream, truth in TRUTHS.items():
        for i, estimator in enumerate(VERSIONS):
            row = {"stream": stream, "truth": truth, "seed": 0, "estimator": estimator, "step": 9}
            row |= {"variance": min(truth, 199.0) * 2**i, "is_unresolved": False, "numel": 64}
            row["is_unresolved"] = stream == "all" and estimator == "sketch"
            rows += [row, row | {"step": 3, "variance": 123.0}]
    return pd.DataFrame(rows)


def by_size():
    frame = readings().query("stream == 'one' and step == 9")
    return pd.concat(frame.assign(numel=n, kind=k) for n in (8, 64) for k in ("a", "b"))


def trace(figure, name):
    """The first trace whose name starts so."""
    return next(t for t in figure.data if (t.name or "").startswith(name))


def against(frame):
    return figures.vgs.against(frame, "numel", "V against size", ["elements", "more elements"])


def costs():
    rows = [("sketch", 0.18, 1e-3, 0.07), ("elementwise", 0.01, 4.0, 0.4)]
    return pd.DataFrame(rows, columns=["estimator", "error", "bytes_per_parameter", "time"])


DRAWN = {
    figures.vgs.estimates_and_truths: readings,
    against: by_size,
    figures.vgs.error_against_memory: costs,
}


@pytest.mark.parametrize("draw", DRAWN, ids=lambda d: d.__name__)
def test_figures_are_deterministic_and_leave_data_and_template_alone(draw):
    frame, template = DRAWN[draw](), pio.templates.default
    before = frame.copy()
    text = draw(frame).to_json()
    assert text == draw(frame).to_json()
    assert "bdata" not in text
    pd.testing.assert_frame_equal(frame, before)
    assert pio.templates.default == template


@pytest.mark.parametrize("draw", DRAWN, ids=lambda d: d.__name__)
def test_a_missing_column_is_named(draw):
    frame = DRAWN[draw]()
    for column in frame.columns.intersection(["truth", "estimator"]):
        with pytest.raises(ValueError, match=f"{draw.__name__}: no column '{column}'"):
            draw(frame.drop(columns=column))


def test_estimates_stand_in_their_streams_row_at_their_value(monkeypatch):
    monkeypatch.setattr(figures.vgs, "FLOOR", 1e-2)
    monkeypatch.setattr(figures.vgs, "ROOF", 1e3)
    figure = figures.vgs.estimates_and_truths(readings())
    rows = dict(zip(figure.layout.yaxis.ticktext, figure.layout.yaxis.tickvals, strict=True))
    assert list(rows) == ["none", "one", "all"]  # in the order of the truth
    shown = trace(figure, "mean_square (3.1)")
    found = {
        min(rows, key=lambda r: abs(rows[r] - y)): x for x, y in zip(shown.x, shown.y, strict=True)
    }
    assert found == {"one": 8, "none": 0.01, "all": 1000}  # 8 x 199 is beyond the roof
    sketch = trace(figure, "sketch")
    assert list(sketch.text) == ["32", "0", "not resolved"]
    assert 123 not in shown.x  # an earlier step
    assert trace(figure, "truth").x[::3] == (0.01, 1, 1000)
    committed = readings().replace({"truth": {math.inf: math.nan}})  # a table of results has none
    again = figures.vgs.estimates_and_truths(committed)
    assert trace(again, "truth").x == trace(figure, "truth").x


def test_size_figure_has_a_panel_for_each_kind_and_one_legend():
    figure = against(by_size())
    assert figure.layout.xaxis2.title.text == "more elements"
    assert [a.text for a in figure.layout.annotations] == ["a", "b"]
    names = [t.name for t in figure.data if t.showlegend]
    assert names == [*(f"{e} ({v})" for e, v in VERSIONS.items()), "truth"]
    assert trace(figure, "tensor_mean").y == (4, 4)
    assert trace(figure, "truth").x == (8, 64)


def test_an_estimator_of_a_later_panel_is_in_the_legend_with_its_own_colour():
    frame = by_size()
    extra = frame[(frame["kind"] == "b") & (frame["estimator"] == "sketch")]
    figure = against(pd.concat([frame, extra.assign(estimator="predicted")]))
    found = [t for t in figure.data if t.name == "predicted"]
    assert [t.showlegend for t in found] == [True]
    colors = {t.marker.color for t in figure.data if t.name == "sketch (4.0)"}
    assert len(colors) == 1
    assert found[0].marker.color not in colors


def test_each_estimator_is_a_point_with_its_time():
    figure = figures.vgs.error_against_memory(costs())
    sketch = trace(figure, "sketch (4.0): 0.07")
    assert (sketch.x, sketch.y) == ((0.001,), (0.18,))
    assert len(figure.data) == 2
