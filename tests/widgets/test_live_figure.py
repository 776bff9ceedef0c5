"""What a live figure sends to the browser: the whole of it, each time."""

import numpy as np
import plotly.graph_objects as go
import pytest

from gqc_widgets.live_figure import LiveFigure


def make(**options):
    figure = go.Figure()
    for name in ("a", "b"):
        figure.add_scatter(x=[], y=[], name=name, meta=name)
    figure.add_annotation(text="nothing yet", name="a")
    figure.add_annotation(text="always", name="c")
    return LiveFigure(figure, **options)


def sent(view, name, axis):
    return np.frombuffer(view._shown["points"][name][axis])


def test_it_opens_with_all_that_there_is():
    view = make(curves={"a": ([1, 2], [3.5, float("nan")])})
    assert sent(view, "a", "x").tolist() == [1, 2]
    assert sent(view, "a", "y").tolist() == pytest.approx([3.5, float("nan")], nan_ok=True)
    assert list(view._shown["points"]) == ["a"]
    assert view._shown["notes"] == [False, True]
    assert [trace["meta"] for trace in view._figure["data"]] == ["a", "b"]
    state = view.get_state()
    assert {"_plotly", "_figure", "_shown", "_config", "_esm"} <= set(state)
    assert len(state["_plotly"]) > 1_000_000
    assert len(state["_esm"]) < 5_000  # what each figure makes the browser compile


def test_a_curve_that_is_filled_leaves_the_others_and_is_one_message(monkeypatch):
    view, changes = make(curves={"a": ([1], [2])}), []
    view.observe(lambda change: changes.append(change["name"]))
    view.fill({"b": ([5, 6], [7, 8]), "unknown": ([1], [1])})
    assert changes == ["_shown"]
    assert sent(view, "a", "y").tolist() == [2]
    assert sent(view, "b", "y").tolist() == [7, 8]
    assert list(view.plot.data[1].y) == [7, 8]
    view.fill({"a": ([], [])})
    assert sent(view, "a", "y").tolist() == []
    assert view._shown["notes"] == [True, True]


def test_a_click_is_told_to_who_asked_for_its_curve():
    view, clicks = make(), []
    view.on_click("a", lambda x, y: clicks.append((x, y)))
    view._clicked(view, {"clicks": [["a", 1, 2.5], ["b", 3, 4], [None, 5, 6]]}, [])
    view._clicked(view, {"other": 1}, [])
    assert clicks == [(1.0, 2.5)]


def test_a_figure_that_is_whole_needs_no_filling():
    view = LiveFigure(go.Figure(go.Scatter(x=[1, 2], y=[3, 4])))
    assert view._shown == {"points": {}, "notes": []}
    assert view._figure["data"][0]["y"] == [3, 4]
