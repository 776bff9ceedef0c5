"""The figures that live views fill: axes, units, legends and empty curves, in the house style."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gqc.lab.figures import HOUSE, LABELS, OKABE_ITO
from gqc_widgets.display import Curves, Points

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = OKABE_ITO
_TICKS = [float(f"{m}e{k}") for k in range(-8, 9) for m in (1, 2, 5)]  # of a log axis
_LOG = {"type": "log", "tickvals": _TICKS, "tickformat": "~g"}
_LEGEND = {"orientation": "h", "xanchor": "left", "yanchor": "bottom", "font": {"size": 12}}
_HIDDEN = ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d"]  # buttons over the figure


def run_figure(unit: str, max_draws: int | None) -> go.Figure:
    """Loss, norm against threshold, draws and noise of a run; curves are named as in `Curves`."""
    figure = make_subplots(
        rows=2, cols=2, shared_xaxes="all", horizontal_spacing=0.1, vertical_spacing=0.08
    )
    _curve(figure, 1, 1, "loss", "microbatch", BLUE, width=1, opacity=0.35)
    _curve(figure, 1, 1, "smooth_loss", "smoothed", BLUE, width=2.5)
    _curve(figure, 1, 1, "val_loss", "validation", VERMILION, width=2, mode="lines+markers")
    _curve(figure, 1, 2, "grad_norm", "at a step", SKY, width=1)
    _curve(figure, 1, 2, "forced", "forced step", VERMILION, mode="markers", symbol="x")
    _curve(figure, 1, 2, "gradient_norm_threshold", "threshold", BLACK, width=2.5)
    _curve(figure, 2, 1, "num_draws", "draws", GREEN, mode="markers", opacity=0.5)
    _curve(figure, 2, 2, "noise_scale", "noise scale", PURPLE, width=2)
    figure.update_layout(_layout(620))
    label = LABELS.get(unit, unit)
    for row, column in ((2, 1), (2, 2)):
        figure.update_xaxes(title_text=label, row=row, col=column)
    figure.update_yaxes(title_text="loss [nat/token]", row=1, col=1)
    figure.update_yaxes(title_text="norm of mean gradient", row=1, col=2, **_LOG)
    figure.update_yaxes(title_text="draws per step", row=2, col=1, **_LOG)
    figure.update_yaxes(title_text="noise / signal", row=2, col=2, **_LOG)
    _range_of_draws(figure, max_draws)
    _note(figure, 1, 2, "grad_norm", "no step has read a norm")
    _note(figure, 2, 2, "noise_scale", "not known: no step has taken two draws")
    _legends(figure, [(1, 1), (1, 2)])
    return figure


def schedule_figure(total: int, max_draws: int | None) -> go.Figure:
    """A plan with what became of it, and the draws it costs; x are microbatches."""
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.64, 0.36], vertical_spacing=0.1
    )
    catcher = {"size": 12, "color": "rgba(0,0,0,0)"}  # plotly reports clicks on points only
    figure.add_scatter(
        x=[], y=[], name="clicks", meta="clicks", mode="markers", marker=catcher, hoverinfo="none",
        showlegend=False, row=1, col=1,
    )  # fmt: skip
    _curve(figure, 1, 1, "grad_norm", "norm at a step", SKY, width=1)
    _curve(figure, 1, 1, "plan", "plan", BLACK, width=2, dash="dash")
    _curve(figure, 1, 1, "applied", "applied", VERMILION, width=3)
    _curve(figure, 1, 1, "points", "drawn points", BLACK, mode="markers", size=10)
    _curve(figure, 2, 1, "num_draws", "draws of a step", GREEN, mode="markers", opacity=0.5)
    _curve(figure, 2, 1, "expected", "expected draws n*", BLACK, width=2, dash="dash")
    _curve(figure, 2, 1, "max_draws", "max_draws", VERMILION, width=1.5, dash="dot")
    figure.update_layout(_layout(560))
    figure.update_xaxes(range=[0, total])
    figure.update_xaxes(title_text=LABELS["microbatch"], row=2, col=1)
    figure.update_yaxes(title_text="norm threshold", row=1, col=1, **_LOG)
    figure.update_yaxes(title_text="draws per step", row=2, col=1, **_LOG)
    _range_of_draws(figure, max_draws)
    _legends(figure, [(1, 1), (2, 1)])
    return figure


def live(figure: go.Figure) -> go.FigureWidget:
    """``figure`` as a widget that is as wide as its place on the page."""
    widget = go.FigureWidget(figure)
    look = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": _HIDDEN}
    widget._config = {**widget._config, **look}
    return widget


def fill(figure: go.Figure, curves: dict[str, Points]) -> None:
    """Give each curve its points, in one message to the browser."""
    with figure.batch_update():
        for trace in figure.data:
            if trace.meta in curves:
                x, y = curves[trace.meta]
                trace.x, trace.y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        for note in figure.layout.annotations:
            if note.name in curves:
                note.visible = len(curves[note.name][0]) == 0


def run_points(curves: Curves) -> dict[str, Points]:
    """All curves of a run by name."""
    return {name: curves.points(name) for name in Curves.NAMES}


def _curve(
    figure: go.Figure,
    row: int,
    column: int,
    key: str,
    name: str,
    color: str,
    *,
    mode: str = "lines",
    opacity: float = 1.0,
    symbol: str = "circle",
    size: int = 6,
    **line: Any,
) -> None:
    style: dict[str, Any] = {"line": {"color": color, **line}} if "lines" in mode else {}
    if "markers" in mode:
        style["marker"] = {"color": color, "symbol": symbol, "size": size}
    figure.add_scatter(
        x=[], y=[], name=name, meta=key, mode=mode, opacity=opacity, row=row, col=column, **style
    )


def _note(figure: go.Figure, row: int, column: int, key: str, text: str) -> None:
    """What is said in the middle of a panel while its curve is empty."""
    where = {"xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0.5, "showarrow": False}
    figure.add_annotation(text=text, name=key, row=row, col=column, **where)


def _range_of_draws(figure: go.Figure, max_draws: int | None) -> None:
    """From one draw, the least, to ``max_draws``."""
    if max_draws is not None:
        figure.update_yaxes(range=[math.log10(0.8), math.log10(2 * max_draws)], row=2, col=1)


def _layout(height: int) -> dict[str, Any]:
    return {
        "template": HOUSE,
        "height": height,
        "autosize": True,
        "margin": {"l": 70, "r": 20, "t": 40, "b": 55},
        "hovermode": "closest",
        "uirevision": "kept",  # zoom and hidden curves outlive an update
    }


def _legends(figure: go.Figure, cells: list[tuple[int, int]]) -> None:
    """A legend above each of these panels; the others have none."""
    figure.update_traces(showlegend=False)
    for number, (row, column) in enumerate(cells, 1):
        legend = "legend" if number == 1 else f"legend{number}"
        panel = figure.get_subplot(row, column)
        corner = {"x": panel.xaxis.domain[0], "y": panel.yaxis.domain[1]}
        figure.update_layout({legend: _LEGEND | corner})
        figure.update_traces(showlegend=True, legend=legend, row=row, col=column)
    figure.update_traces(showlegend=False, selector={"name": "clicks"})
