"""Figures of what can be decided without training: peak memory, and the order of protection.

As :mod:`gqc.lab.figures`: data in, a figure out, the same for the same data.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gqc.lab.analysis import check_columns
from gqc.lab.figures.style import HOUSE, OKABE_ITO, plain_numbers

__all__ = ["peak_memory", "protection"]

WHEN = {"first": "first step", "late": "late"}
SYMBOLS = ("circle-open", "square-open", "diamond-open", "triangle-up-open")


def peak_memory(memory: pd.DataFrame) -> go.Figure:
    """Peak bytes in sizes of one gradient: a row for each method, a ring for each number of draws.

    More draws, a larger ring: where memory is constant, rings are concentric.

    Args:
        memory: rows of `gqc.lab.experiments.window_memory.measure`, of one network.
    """
    needs = ["method", "accumulate", "num_draws", "peak_bytes", "gradient_bytes"]
    check_columns("peak_memory", memory, needs)
    names = memory["method"].where(
        memory["accumulate"] == "list", memory["method"] + ", " + memory["accumulate"]
    )
    figure = go.Figure(layout={"template": HOUSE, "title_text": "Peak memory, weights included"})
    for i, n in enumerate(sorted(memory["num_draws"].unique().tolist())):
        rows = memory[memory["num_draws"] == n]
        style = {"symbol": "circle-open", "size": 7 + 6 * i, "color": OKABE_ITO[i % 7]}
        figure.add_scatter(
            x=plain_numbers(rows["peak_bytes"] / rows["gradient_bytes"]),
            y=names[rows.index].tolist(),
            name=f"{n} draw{'s' if n > 1 else ''}",
            mode="markers",
            marker=style | {"line": {"width": 2}},
        )
    ticks = {"tickvals": [1, 2, 3, 5, 10, 20, 50, 100, 200, 500], "tickformat": "~g"}
    figure.update_xaxes(title_text="peak [sizes of one gradient]", type="log", **ticks)
    order = {"categoryorder": "array", "categoryarray": list(dict.fromkeys(names))[::-1]}
    figure.update_yaxes(**order)
    figure.update_layout(height=140 + 34 * names.nunique(), hovermode="closest")
    figure.update_xaxes(rangemode="normal")
    return figure


def protection(orders: pd.DataFrame) -> go.Figure:
    """Rank correlation of utility and protection by normalization, at the first step and late.

    Args:
        orders: rows with ``case``, ``normalization``, ``when``, ``correlation``, as of
            `gqc.lab.experiments.upgd_order.random_orders`; of one seed.
    """
    check_columns("protection", orders, ["case", "normalization", "when", "correlation"])
    times, names = list(orders["when"].unique()), list(orders["normalization"].unique())
    titles = [WHEN.get(when, when) for when in times]
    figure = make_subplots(1, len(times), shared_yaxes=True, subplot_titles=titles)
    for i, (case, group) in enumerate(orders.groupby("case", sort=False)):
        style = {"symbol": SYMBOLS[i % 4], "size": 11, "color": OKABE_ITO[i % 7]}
        for column, when in enumerate(times, 1):
            rows = group[group["when"] == when]
            heights = [0.22 * (1 - i) - names.index(name) for name in rows["normalization"]]
            figure.add_scatter(
                x=plain_numbers(rows["correlation"]),
                y=plain_numbers(heights),
                name=str(case),
                legendgroup=str(case),
                showlegend=column == 1,
                mode="markers",
                marker=style | {"line": {"width": 2}},
                row=1,
                col=column,
            )
    figure.add_vline(0, line={"color": "#444444", "width": 1, "dash": "dot"})
    ticks = {"tickvals": [-1, 0, 1], "ticktext": ["reversed", "none", "kept"]}
    figure.update_xaxes(range=[-1.15, 1.15], title_text="rank correlation", **ticks)
    labels = [name.replace("_", "<br>") for name in names]
    figure.update_yaxes(tickvals=[-i for i in range(len(names))], ticktext=labels, showgrid=False)
    figure.update_layout(template=HOUSE, title_text="Order of protection, random utilities")
    figure.update_layout(height=150 + 70 * len(names), hovermode="closest", margin_t=90)
    return figure
