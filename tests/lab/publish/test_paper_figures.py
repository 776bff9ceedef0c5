"""Plotly figures drawn for print say what they say on a screen."""

import matplotlib as mpl
import plotly.graph_objects as go
import pytest
from matplotlib import pyplot
from plotly.subplots import make_subplots

from gqc_lab.publish.matplotlib_figure import draw
from gqc_lab.publish.paper_figures import read_figures
from gqc_lab.runs import BadInput


@pytest.fixture(autouse=True)
def closed():
    mpl.use("agg")
    yield
    pyplot.close("all")


def panels():
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=["left", "right"])
    line = {"color": "#D55E00", "dash": "dash", "width": 2}
    figure.add_scatter(x=[1, 10, 100], y=[1, None, 3], mode="lines", line=line, name="a<br>b")
    bars = {"type": "data", "symmetric": False, "array": [1], "arrayminus": [0.5]}
    marker = {"symbol": "square-open", "color": "#000000"}
    point = {"mode": "markers", "marker": marker, "error_y": bars, "showlegend": False}
    figure.add_scatter(x=[5], y=[2], name="c", **point, row=1, col=2)
    figure.add_hline(2.5, line={"color": "#444444", "dash": "dot"}, annotation_text="level")
    figure.update_xaxes(type="log", tickvals=[1, 10, 1e6], tickformat="~s", col=1)
    figure.update_yaxes(title_text="height [m]", range=[0, 4])
    return figure


def test_lines_markers_and_bars_are_where_they_were():
    left, right = draw(panels(), (6, 3)).axes
    (line,) = left.containers[0].lines[:1]
    assert list(line.get_xdata()) == [1, 10, 100]
    assert (line.get_linestyle(), line.get_color()) == ("--", "#D55E00")
    assert line.get_ydata()[1] != line.get_ydata()[1]  # a gap
    (point,) = right.containers[0].lines[:1]
    assert (point.get_marker(), point.get_markerfacecolor()) == ("s", "none")
    (segment,) = right.containers[0].lines[2][0].get_segments()
    assert segment.tolist() == [[5, 1.5], [5, 3]]


def test_axes_titles_levels_and_legend_are_kept():
    figure = draw(panels(), (6, 3))
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("left", "right")
    assert left.get_ylabel() == "height [m]"
    assert left.get_xscale() == "log"
    assert left.get_ylim() == right.get_ylim() == (0, 4)
    assert [t.get_text() for t in left.get_xticklabels()] == ["1", "10"]  # the last is outside
    assert any(list(line.get_ydata()) == [2.5, 2.5] for line in left.lines)
    assert "level" in [text.get_text() for text in right.texts]
    assert left.get_legend_handles_labels()[1] == ["a\nb"]


def test_no_more_ticks_than_the_figure_asks_for():
    """Long labels in a narrow panel would be written over each other."""
    figure = go.Figure().add_scatter(x=[0.99883, 1.00077], y=[1, 2], mode="markers")
    figure.update_xaxes(nticks=6)
    (axes,) = draw(figure, (2.5, 2)).axes
    axes.figure.canvas.draw()
    shown = [text.get_text() for text in axes.get_xticklabels()]
    assert shown[1:-1] == ["0.9990", "0.9995", "1.0000", "1.0005"]


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match="trace of type 'pie': expected scatter"):
        draw(go.Figure(go.Pie(values=[1])), (3, 2))


def test_a_wrong_entry_is_named(tmp_path):
    (tmp_path / "figures.yaml").write_text("x: {figure: loss_against, batches: a}")
    with pytest.raises(BadInput, match="x: unknown key 'batches'; did you mean 'batch'"):
        read_figures(tmp_path)
    (tmp_path / "figures.yaml").write_text("x: {figure: loss_against}")
    with pytest.raises(BadInput, match="x: lacks batch"):
        read_figures(tmp_path)
