"""The figures that live views fill: axes, units, legends and empty curves, in the house style."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gqc_lab.figures import HOUSE, LABELS, OKABE_ITO
from gqc_widgets.display import Curves, Points

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = OKABE_ITO
_TICKS = [float(f"{m}e{k}") for k in range(-8, 9) for m in (1, 2, 5)]  # of a log axis
LOG = {"type": "log", "tickvals": _TICKS, "tickformat": "~g"}
_LEGEND = {"orientation": "h", "xanchor": "left", "yanchor": "bottom", "font": {"size": 12}}


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        title: of the y axis.
        curves: name as in `Curves` -> the arguments of its line; a curve is drawn where its field
            is recorded, or the field that it is made from.
        axis: of y.
        note: (curve, text): what is said while that curve is empty.
    """

    title: str
    curves: dict[str, dict[str, Any]]
    axis: dict[str, Any]
    note: tuple[str, str] | None = None


VARIANCES: dict[str, dict[str, Any]] = {
    "vgs/stochastic_var_p90": {"name": "p90", "color": SKY, "width": 1.5},
    "vgs/stochastic_var_p50": {"name": "p50 of tensors", "color": GREEN, "width": 1.5},
    "vgs/stochastic_var_p10": {"name": "p10", "color": ORANGE, "width": 1.5},
    "vgs/normalized_variance": {"name": "V", "color": PURPLE, "width": 2.5},
}
PANELS = (
    Panel(
        "loss",
        {
            "loss": {"name": "microbatch", "color": BLUE, "width": 1, "opacity": 0.35},
            "smooth_loss": {"name": "smoothed", "color": BLUE, "width": 2.5},
            "val_loss": {
                "name": "validation",
                "color": VERMILION,
                "width": 2,
                "mode": "lines+markers",
            },
        },
        {},
    ),
    Panel(
        "norm of mean gradient",
        {
            "grad_norm": {"name": "at a step", "color": SKY, "width": 1},
            "forced": {
                "name": "forced step",
                "color": VERMILION,
                "mode": "markers",
                "symbol": "x",
            },
            "gradient_norm_threshold": {"name": "threshold", "color": BLACK, "width": 2.5},
        },
        LOG,
        ("grad_norm", "no step has read a norm"),
    ),
    Panel(
        "draws per step",
        {"num_draws": {"name": "draws", "color": GREEN, "mode": "markers", "opacity": 0.5}},
        LOG,
    ),
    Panel(
        "noise / signal",
        {"noise_scale": {"name": "noise scale", "color": PURPLE, "width": 2}},
        LOG,
        ("noise_scale", "not known: no step has taken two draws"),
    ),
    Panel("variance / signal", VARIANCES, LOG, ("vgs/normalized_variance", "not measured yet")),
    Panel(
        "factor on the gradient",
        {"factor": {"name": "factor", "color": VERMILION, "width": 2.5}},
        {"range": [0, 1.05]},
    ),
)

#: curve -> the field that it is made from, where that has another name
_MADE_FROM = {"smooth_loss": "loss", "forced": "gradient_norm_threshold"}
_FIELD_OF_ALL = "vgs/normalized_variance"  # a run that records it records its percentiles


def run_panels(fields: Collection[str]) -> list[Panel]:
    """The panels of a run that records ``fields``, with the curves that there are."""
    found = []
    for panel in PANELS:
        curves = {
            name: style
            for name, style in panel.curves.items()
            if _MADE_FROM.get(name, _FIELD_OF_ALL if name.startswith("vgs/") else name) in fields
        }
        if curves:
            found.append(Panel(panel.title, curves, panel.axis, panel.note))
    return found


def run_figure(
    unit: str, fields: Collection[str], loss_unit: str, max_draws: int | None
) -> go.Figure:
    """What a run records, two panels to a row; curves are named as in `Curves`.

    Args:
        unit: what is counted to the right, as in the records.
        fields: keys of the records.
        loss_unit: of the loss, or empty.
        max_draws: of a step, or None.
    """
    panels = run_panels(fields)
    rows = -(-len(panels) // 2)
    figure = make_subplots(
        rows=rows,
        cols=2,
        shared_xaxes="all",
        horizontal_spacing=0.1,
        vertical_spacing=0.36 / (3 * rows),
    )
    places = [(1 + i // 2, 1 + i % 2) for i in range(len(panels))]
    for panel, (row, column) in zip(panels, places, strict=True):
        for key, style in panel.curves.items():
            add_curve(figure, row, column, key, **style)
        title = panel.title
        if "loss" in panel.curves and loss_unit:
            title = f"{title} [{loss_unit}]"
        figure.update_yaxes(title_text=title, row=row, col=column, **panel.axis)
        if panel.note is not None:
            _note(figure, row, column, *panel.note)
        if "num_draws" in panel.curves:
            range_of_draws(figure, max_draws, row, column)
    figure.update_layout(layout(310 * rows))
    for row, column in places[-2:]:
        figure.update_xaxes(title_text=LABELS.get(unit, unit), row=row, col=column)
    legends(figure, [p for p, panel in zip(places, panels, strict=True) if len(panel.curves) > 1])
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
    add_curve(figure, 1, 1, "grad_norm", "norm at a step", SKY, width=1)
    add_curve(figure, 1, 1, "plan", "plan", BLACK, width=2, dash="dash")
    add_curve(figure, 1, 1, "applied", "applied", VERMILION, width=3)
    add_curve(figure, 1, 1, "points", "drawn points", BLACK, mode="markers", size=10)
    add_curve(figure, 2, 1, "num_draws", "draws of a step", GREEN, mode="markers", opacity=0.5)
    add_curve(figure, 2, 1, "expected", "expected draws n*", BLACK, width=2, dash="dash")
    add_curve(figure, 2, 1, "max_draws", "max_draws", VERMILION, width=1.5, dash="dot")
    figure.update_layout(layout(560))
    figure.update_xaxes(range=[0, total])
    figure.update_xaxes(title_text=LABELS["microbatch"], row=2, col=1)
    figure.update_yaxes(title_text="norm threshold", row=1, col=1, **LOG)
    figure.update_yaxes(title_text="draws per step", row=2, col=1, **LOG)
    range_of_draws(figure, max_draws, 2, 1)
    legends(figure, [(1, 1), (2, 1)])
    return figure


def run_points(curves: Curves) -> dict[str, Points]:
    """All curves of a run by name."""
    return {name: curves.points(name) for name in Curves.NAMES}


def add_curve(
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
    """An empty curve that `LiveFigure.fill` knows as ``key``."""
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


def range_of_draws(figure: go.Figure, max_draws: int | None, row: int, column: int) -> None:
    """From one draw, the least, to ``max_draws``."""
    if max_draws is not None:
        bounds = [math.log10(0.8), math.log10(2 * max_draws)]
        figure.update_yaxes(range=bounds, row=row, col=column)


def layout(height: int) -> dict[str, Any]:
    """What all live figures share."""
    return {
        "template": HOUSE,
        "height": height,
        "autosize": True,
        "margin": {"l": 70, "r": 20, "t": 40, "b": 55},
        "hovermode": "closest",
        "uirevision": "kept",  # zoom and hidden curves outlive an update
    }


def legends(figure: go.Figure, cells: Sequence[tuple[int, int]]) -> None:
    """A legend above each of these panels; the others have none."""
    figure.update_traces(showlegend=False)
    for number, (row, column) in enumerate(cells, 1):
        legend = "legend" if number == 1 else f"legend{number}"
        panel = figure.get_subplot(row, column)
        corner = {"x": panel.xaxis.domain[0], "y": panel.yaxis.domain[1]}
        figure.update_layout({legend: _LEGEND | corner})
        figure.update_traces(showlegend=True, legend=legend, row=row, col=column)
    figure.update_traces(showlegend=False, selector={"name": "clicks"})
