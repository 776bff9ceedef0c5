"""Figures that live views fill: axes, units, legends and empty curves, in the house style."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gqc_lab.figures import DASHES, HOUSE, LABELS, OKABE_ITO

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = OKABE_ITO
_TICKS = [float(f"{m}e{k}") for k in range(-8, 9) for m in (1, 2, 5)]  # of a log axis
LOG = {"type": "log", "tickvals": _TICKS, "tickformat": "~g"}
_FACTOR = {"range": [0, 1.05]}
_LEGEND = {"orientation": "h", "xanchor": "left", "yanchor": "bottom", "font": {"size": 12}}


@dataclass(frozen=True)
class Curve:
    """An empty curve that `LiveFigure.fill` knows as ``key``.

    Args:
        key: where it shows what is recorded, the name of the `Curves` that it shows.
        name: in the legend.
        color, mode, width, dash, size, symbol, opacity: as in plotly.
        field: key of the records that it needs, if not ``key``.
    """

    key: str
    name: str
    color: str
    mode: str = "lines"
    width: float = 2
    dash: str = "solid"
    size: int = 6
    symbol: str = "circle"
    opacity: float = 1.0
    field: str = ""

    def add_to(self, figure: go.Figure, row: int = 1, column: int = 1) -> None:
        """Add the curve to a panel of ``figure``."""
        style: dict[str, Any] = {}
        if "lines" in self.mode:
            style["line"] = {"color": self.color, "width": self.width, "dash": self.dash}
        if "markers" in self.mode:
            style["marker"] = {"color": self.color, "symbol": self.symbol, "size": self.size}
        figure.add_scatter(
            x=[], y=[], name=self.name, meta=self.key, mode=self.mode, opacity=self.opacity,
            row=row, col=column, **style,
        )  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        title: of the y axis.
        curves: drawn if their field is recorded.
        axis: of y.
        note: (curve, text): shown while that curve is empty.
    """

    title: str
    curves: tuple[Curve, ...]
    axis: dict[str, Any]
    note: tuple[str, str] | None = None


_V = "vgs/normalized_variance"  # a run that records V records its percentiles, too
VARIANCES = (
    Curve("vgs/stochastic_var_p90", "p90", SKY, width=1.5, field=_V),
    Curve("vgs/stochastic_var_p50", "p50 of tensors", GREEN, width=1.5, field=_V),
    Curve("vgs/stochastic_var_p10", "p10", ORANGE, width=1.5, field=_V),
    Curve(_V, "V", PURPLE, width=2.5),
)
_THRESHOLD = "gradient_norm_threshold"
PANELS = (
    Panel(
        "loss",
        (
            Curve("loss", "microbatch", BLUE, width=1, opacity=0.35),
            Curve("smooth_loss", "smoothed", BLUE, width=2.5, field="loss"),
            Curve("val_loss", "validation", VERMILION, "lines+markers"),
        ),
        {},
    ),
    Panel(
        "norm of mean gradient",
        (
            Curve("grad_norm", "at a step", SKY, width=1),
            Curve("forced", "forced step", VERMILION, "markers", symbol="x", field=_THRESHOLD),
            Curve(_THRESHOLD, "threshold", BLACK, width=2.5),
        ),
        LOG,
        ("grad_norm", "no step has read a norm"),
    ),
    Panel("draws per step", (Curve("num_draws", "draws", GREEN, "markers", opacity=0.5),), LOG),
    Panel(
        "noise / signal",
        (Curve("noise_scale", "noise scale", PURPLE),),
        LOG,
        ("noise_scale", "not known: no step has taken two draws"),
    ),
    Panel("variance / signal", VARIANCES, LOG, (_V, "not measured yet")),
    Panel("factor on the gradient", (Curve("factor", "factor", VERMILION, width=2.5),), _FACTOR),
)


def run_panels(fields: Collection[str]) -> list[Panel]:
    """Return the panels of a run that records ``fields``, with the curves that it has."""
    found = []
    for panel in PANELS:
        curves = tuple(curve for curve in panel.curves if (curve.field or curve.key) in fields)
        if curves:
            found.append(Panel(panel.title, curves, panel.axis, panel.note))
    return found


def run_figure(
    unit: str, fields: Collection[str], loss_unit: str, max_draws: int | None
) -> go.Figure:
    """Draw what a run records, two panels to a row.

    Args:
        unit: of x, a key of the records.
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
        for curve in panel.curves:
            curve.add_to(figure, row, column)
        title = f"loss [{loss_unit}]" if panel.title == "loss" and loss_unit else panel.title
        figure.update_yaxes(title_text=title, row=row, col=column, **panel.axis)
        if panel.note is not None:
            _note(figure, row, column, *panel.note)
        if panel.title == "draws per step":
            _bound_draws(figure, max_draws, row, column)
    figure.update_layout(_layout(310 * rows))
    for row, column in places[-2:]:
        figure.update_xaxes(title_text=LABELS.get(unit, unit), row=row, col=column)
    _legends(figure, [p for p, panel in zip(places, panels, strict=True) if len(panel.curves) > 1])
    return figure


def schedule_figure(total: int, max_draws: int | None) -> go.Figure:
    """Draw a norm schedule with what became of it, and its draws, against microbatches."""
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.64, 0.36], vertical_spacing=0.1
    )
    catcher = {"size": 12, "color": "rgba(0,0,0,0)"}  # plotly reports clicks on points only
    figure.add_scatter(
        x=[], y=[], name="clicks", meta="clicks", mode="markers", marker=catcher, hoverinfo="none",
        showlegend=False, row=1, col=1,
    )  # fmt: skip
    for curve in (
        Curve("grad_norm", "norm at a step", SKY, width=1),
        Curve("schedule", "schedule", BLACK, dash="dash"),
        Curve(_THRESHOLD, "applied", VERMILION, width=3),
        Curve("points", "drawn points", BLACK, "markers", size=10),
    ):
        curve.add_to(figure, 1)
    for curve in (
        Curve("num_draws", "draws of a step", GREEN, "markers", opacity=0.5),
        Curve("expected", "expected draws n*", BLACK, dash="dash"),
        Curve("max_draws", "max_draws", VERMILION, width=1.5, dash="dot"),
    ):
        curve.add_to(figure, 2)
    figure.update_layout(_layout(560))
    figure.update_xaxes(range=[0, total])
    figure.update_xaxes(title_text=LABELS["microbatch"], row=2, col=1)
    figure.update_yaxes(title_text="norm threshold", row=1, col=1, **LOG)
    figure.update_yaxes(title_text="draws per step", row=2, col=1, **LOG)
    _bound_draws(figure, max_draws, 2, 1)
    _legends(figure, [(1, 1), (2, 1)])
    return figure


def scaler_figure(unit: str) -> go.Figure:
    """Draw V over tensors with its cap, and the factor next to what single percentiles give."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.14)
    for curve in (*VARIANCES, Curve("cap", "cap", BLACK, width=1.5, dash="dot")):
        curve.add_to(figure, 1)
    Curve("factor", "applied", VERMILION, width=2.5).add_to(figure, 2)
    names = {"p10": "law at p10", "p50": "p50", "p90": "p90"}
    for (level, name), color in zip(names.items(), (ORANGE, GREEN, SKY), strict=True):
        Curve(f"at {level}", name, color, width=1.5, dash="dot").add_to(figure, 2)
    figure.update_layout(_layout(480))
    figure.update_xaxes(title_text=LABELS.get(unit, unit), row=2, col=1)
    figure.update_yaxes(title_text="variance / signal", row=1, col=1, **LOG)
    figure.update_yaxes(title_text="factor", row=2, col=1, **_FACTOR)
    _legends(figure, [(1, 1), (2, 1)])
    return figure


def what_if_figure(unit: str) -> go.Figure:
    """Draw the factor as it was recorded, and with other settings."""
    figure = make_subplots(rows=1, cols=1)
    Curve("recorded", "recorded", VERMILION, width=2.5).add_to(figure)
    Curve("what_if", "what if", BLACK, dash="dash").add_to(figure)
    figure.update_layout(_layout(280))
    figure.update_xaxes(title_text=LABELS.get(unit, unit))
    figure.update_yaxes(title_text="factor", **_FACTOR)
    _legends(figure, [(1, 1)])
    return figure


def side_figure(unit: str, loss_unit: str, alphas: Sequence[float]) -> go.Figure:
    """Draw held-out loss (before there is one, smoothed training loss) and factor, by alpha.

    Curves are named ``smooth_loss i``, ``val_loss i`` and ``factor i`` for the i-th alpha.
    """
    figure = make_subplots(rows=1, cols=2, shared_xaxes="all", horizontal_spacing=0.1)
    for i, alpha in enumerate(alphas):
        color, dash = OKABE_ITO[i % len(OKABE_ITO)], DASHES[i % len(DASHES)]
        Curve(f"smooth_loss {i}", "", color, width=1, dash=dash, opacity=0.45).add_to(figure)
        Curve(f"val_loss {i}", f"alpha {alpha:g}", color, width=2.5, dash=dash).add_to(figure)
        Curve(f"factor {i}", "", color, dash=dash).add_to(figure, 1, 2)
    figure.update_layout(_layout(320))
    figure.update_xaxes(title_text=LABELS.get(unit, unit))
    figure.update_yaxes(title_text=f"loss [{loss_unit}]" if loss_unit else "loss", row=1, col=1)
    figure.update_yaxes(title_text="factor", row=1, col=2, **_FACTOR)
    _legends(figure, [(1, 1)])
    figure.update_traces(showlegend=False, selector=lambda trace: not trace.name)
    return figure


def _note(figure: go.Figure, row: int, column: int, key: str, text: str) -> None:
    """Put ``text`` in the middle of a panel while its curve ``key`` is empty."""
    where = {"xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0.5, "showarrow": False}
    figure.add_annotation(text=text, name=key, row=row, col=column, **where)


def _bound_draws(figure: go.Figure, max_draws: int | None, row: int, column: int) -> None:
    """Let the axis reach from one draw to ``max_draws``."""
    if max_draws is not None:
        bounds = [math.log10(0.8), math.log10(2 * max_draws)]
        figure.update_yaxes(range=bounds, row=row, col=column)


def _layout(height: int) -> dict[str, Any]:
    """Return what all live figures share."""
    return {
        "template": HOUSE,
        "height": height,
        "autosize": True,
        "margin": {"l": 70, "r": 20, "t": 40, "b": 55},
        "hovermode": "closest",
        "uirevision": "kept",  # zoom and hidden curves outlive an update
    }


def _legends(figure: go.Figure, cells: Sequence[tuple[int, int]]) -> None:
    """Put a legend above each of these panels, and none above the others."""
    figure.update_traces(showlegend=False)
    for number, (row, column) in enumerate(cells, 1):
        legend = "legend" if number == 1 else f"legend{number}"
        panel = figure.get_subplot(row, column)
        corner = {"x": panel.xaxis.domain[0], "y": panel.yaxis.domain[1]}
        figure.update_layout({legend: _LEGEND | corner})
        figure.update_traces(showlegend=True, legend=legend, row=row, col=column)
    figure.update_traces(showlegend=False, selector={"name": "clicks"})
