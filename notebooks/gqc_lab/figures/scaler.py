"""Figures of a variance scaler in use: V over tensors, the factor, and other laws' factors."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gqc_lab.figures.style import (
    BLACK,
    DASHES,
    LABELS,
    LEGEND_ABOVE,
    LOG_TICKS,
    OKABE_ITO,
    add_curve,
    new_figure,
    new_panels,
)
from gqc_lab.loop.scaler_controls import VARIANCE, scaled_steps, what_if
from gqc_lab.stats.analysis import check_columns

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, _ = OKABE_ITO
# There are up to ten lines, and a saved notebook holds them all.
_curve = partial(add_curve, limit=200)
PERCENTILES = {"p90": SKY, "p50": GREEN, "p10": ORANGE}


def variance_and_factor(history: pd.DataFrame, x: str = "microbatch") -> go.Figure:
    """Plot V over tensors above the resulting factor of one run; dotted lines mark changes."""
    levels = {f"vgs/stochastic_var_{p}": (p, color, 1.5) for p, color in PERCENTILES.items()}
    curves = {**levels, VARIANCE: ("V, which makes the factor", PURPLE, 2.5)}
    check_columns("variance_and_factor", history, [x, "factor", "changes", *curves])
    title, spacing = "Variance over tensors, and the factor", {"vertical_spacing": 0.08}
    figure = new_panels(2, 1, title, shared_xaxes=True, **spacing)
    for column, (name, color, width) in curves.items():
        _curve(figure, history, x, column, name, {"color": color, "width": width}, row=1, col=1)
    steps = history.dropna(subset=["factor"])
    _curve(figure, steps, x, "factor", "factor", {"color": VERMILION, "width": 2.5}, row=2, col=1)
    for change in history.loc[history["changes"].notna(), x]:
        figure.add_vline(float(change), line={"color": BLACK, "width": 1, "dash": "dot"})
    figure.update_layout(LEGEND_ABOVE | {"height": 480, "margin_t": 90})  # one row of legend
    figure.update_yaxes(
        title_text="variance / signal", type="log", tickvals=LOG_TICKS, tickformat="~g", row=1
    )
    figure.update_yaxes(title_text="factor on the gradient", range=[0, 1.05], row=2)
    return figure.update_xaxes(title_text=LABELS.get(x, x), row=2)


def what_if_against_runs(
    history: pd.DataFrame, laws: Mapping[str, Mapping[str, Any]], recorded: str
) -> go.Figure:
    """Plot the factors of runs, and those that the record of one run predicts (dashed).

    Args:
        laws: method -> its law, as of `gqc_lab.loop.scaler_controls.what_if`.
        recorded: the method whose record is asked.
    """
    check_columns("what_if_against_runs", history, ["method", "microbatch", "factor", VARIANCE])
    record = history[history["method"] == recorded]
    steps = scaled_steps({str(name): record[name] for name in record}, "microbatch")
    layout = LEGEND_ABOVE | {"margin_t": 110, "height": 400, "xaxis_title_text": "optimizer steps"}
    figure = new_figure(f"Factors, and what the record of {recorded} says", **layout)
    for i, (method, law) in enumerate(laws.items()):
        line = {"color": OKABE_ITO[i % len(OKABE_ITO)], "width": 2}
        run = history[history["method"] == method].dropna(subset=["factor"])
        _curve(figure, run, "microbatch", "factor", method, line)
        guess = pd.DataFrame({"microbatch": steps["microbatch"], "factor": what_if(steps, law)})
        name, dash = f"what if: {method}", DASHES[1]
        _curve(figure, guess, "microbatch", "factor", name, line | {"dash": dash})
    return figure.update_yaxes(title_text="factor on the gradient", range=[0, 1.05])
