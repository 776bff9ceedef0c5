"""The figures of the alpha tuner: variance and factor of a run, what if, and side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gqc_lab.figures import DASHES, LABELS, OKABE_ITO
from gqc_widgets.panels import (
    BLACK,
    GREEN,
    LOG,
    ORANGE,
    SKY,
    VARIANCES,
    VERMILION,
    add_curve,
    layout,
    legends,
)

_FACTOR = {"title_text": "factor", "range": [0, 1.05]}


def scaler_figure(unit: str) -> go.Figure:
    """V over tensors with its cap, and the factor with what single percentiles would give."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.14)
    for key, style in VARIANCES.items():
        add_curve(figure, 1, 1, key, **style)
    add_curve(figure, 1, 1, "cap", "cap", BLACK, width=1.5, dash="dot")
    add_curve(figure, 2, 1, "factor", "applied", VERMILION, width=2.5)
    for level, color in (("p10", ORANGE), ("p50", GREEN), ("p90", SKY)):
        name = f"law at {level}" if level == "p10" else level
        add_curve(figure, 2, 1, f"at {level}", name, color, width=1.5, dash="dot")
    figure.update_layout(layout(480))
    figure.update_xaxes(title_text=LABELS.get(unit, unit), row=2, col=1)
    figure.update_yaxes(title_text="variance / signal", row=1, col=1, **LOG)
    figure.update_yaxes(row=2, col=1, **_FACTOR)
    legends(figure, [(1, 1), (2, 1)])
    return figure


def what_if_figure(unit: str) -> go.Figure:
    """The factor as it was recorded, and under another law."""
    figure = make_subplots(rows=1, cols=1)
    add_curve(figure, 1, 1, "recorded", "recorded", VERMILION, width=2.5)
    add_curve(figure, 1, 1, "what_if", "what if", BLACK, width=2, dash="dash")
    figure.update_layout(layout(280))
    figure.update_xaxes(title_text=LABELS.get(unit, unit))
    figure.update_yaxes(**_FACTOR)
    legends(figure, [(1, 1)])
    return figure


def side_figure(unit: str, loss_unit: str, alphas: Sequence[float]) -> go.Figure:
    """Held-out loss (or, before there is one, smoothed training loss) and factor, by alpha.

    Curves are named ``loss i``, ``val_loss i`` and ``factor i`` with i the place of the alpha.
    """
    figure = make_subplots(rows=1, cols=2, shared_xaxes="all", horizontal_spacing=0.1)
    for i, alpha in enumerate(alphas):
        line: dict[str, Any] = {
            "color": OKABE_ITO[i % len(OKABE_ITO)],
            "dash": DASHES[i % len(DASHES)],
        }
        add_curve(figure, 1, 1, f"smooth_loss {i}", "", **line, width=1, opacity=0.45)
        add_curve(figure, 1, 1, f"val_loss {i}", f"alpha {alpha:g}", **line, width=2.5)
        add_curve(figure, 1, 2, f"factor {i}", "", **line, width=2)
    figure.update_layout(layout(320))
    figure.update_xaxes(title_text=LABELS.get(unit, unit))
    unit_of_loss = f" [{loss_unit}]" if loss_unit else ""
    figure.update_yaxes(title_text=f"loss{unit_of_loss}", row=1, col=1)
    figure.update_yaxes(row=1, col=2, **_FACTOR)
    legends(figure, [(1, 1)])
    figure.update_traces(showlegend=False, selector=lambda trace: not trace.name)
    return figure
