"""Figures of what can be decided without training: memory, a factor under Adam, protection."""

from textwrap import wrap
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gqc_lab.figures.style import (
    LABELS,
    LEVEL,
    OKABE_ITO,
    add_line,
    add_points,
    new_figure,
    new_panels,
    nth_style,
    plain_numbers,
)
from gqc_lab.stats.analysis import check_columns

WHEN = {"first": "first step", "late": "late"}
SUMS = {"grad": ":<br>sum in .grad", "buffer": ":<br>sum in a buffer"}
SYMBOLS = ("circle-open", "square-open", "diamond-open", "triangle-up-open")


def peak_memory(memory: pd.DataFrame) -> go.Figure:
    """Plot peak memory, in sizes of one gradient, against the number of draws, both log.

    Where memory is constant a line is flat.  Methods with the same peaks share a line.

    Args:
        memory: rows of `gqc_lab.studies.window_memory.measure`, of one network.
    """
    needs = ["method", "accumulate", "num_draws", "peak_bytes", "gradient_bytes"]
    check_columns("peak_memory", memory, needs)
    figure = new_figure("Peak memory of one run, weights included")
    for i, (accumulate, methods, peaks) in enumerate(_curves(memory)):
        name = "<br>".join(wrap(", ".join(methods), 22)) + SUMS.get(accumulate, "")
        _add_curve(figure, sorted(peaks), [peaks[n] for n in sorted(peaks)], name, i)
    draws = plain_numbers(sorted(memory["num_draws"].unique()))
    figure.update_xaxes(type="log", tickvals=draws, rangemode="normal", title=LABELS["num_draws"])
    ticks = {"tickvals": [1, 2, 3, 5, 10, 20, 50, 100, 200, 500], "tickformat": "~g"}
    return figure.update_yaxes(title_text="peak [sizes of one gradient]", type="log", **ticks)


def _curves(memory: pd.DataFrame) -> list[tuple[str, list[str], dict[int, float]]]:
    """Group methods with equal peaks: (how they accumulate, methods, draws -> peak)."""
    curves: list[tuple[str, list[str], dict[int, float]]] = []
    for (method, accumulate), rows in memory.groupby(["method", "accumulate"], sort=False):
        ratios = rows["peak_bytes"] / rows["gradient_bytes"]
        peaks = dict(zip(rows["num_draws"].astype(int), ratios, strict=True))
        for other, methods, known in curves:
            if other == accumulate and all(known.get(n, p) == p for n, p in peaks.items()):
                methods.append(str(method))
                known |= peaks
                break
        else:
            curves.append((str(accumulate), [str(method)], peaks))
    return curves


def _add_curve(figure: go.Figure, x: Any, y: Any, name: str, i: int) -> None:
    marker = {"symbol": SYMBOLS[i % 4], "size": 9}
    add_line(figure, x, y, name, nth_style(i, width=2.5), mode="lines+markers", marker=marker)


def falling_factor(measured: pd.DataFrame) -> go.Figure:
    """Plot the smallest ratio of updates against the steps in which the factor falls.

    At 1 the factor is invisible; dotted is the factor itself.

    Args:
        measured: as of `gqc_lab.studies.vgs.factor_invariance.measure`; of one seed.
    """
    needs = ["optimizer", "duration", "least_ratio", "factor"]
    check_columns("falling_factor", measured, needs)
    figure = new_figure("Updates with a factor that falls, over those without")
    for i, (name, rows) in enumerate(measured.groupby("optimizer", sort=False)):
        _add_curve(figure, rows["duration"], rows["least_ratio"], str(name), i)
    figure.add_hline(y=float(measured["factor"].iloc[0]), line={"dash": "dot", "width": 1})
    durations = plain_numbers(sorted(measured["duration"].unique()))
    axis = {"type": "log", "tickvals": durations, "rangemode": "normal"}
    figure.update_xaxes(title_text="steps in which the factor falls", **axis)
    return figure.update_yaxes(title_text="least ratio in any window", range=[0, 1.05])


def protection(orders: pd.DataFrame) -> go.Figure:
    """Plot the rank correlation of utility and protection, of one seed, at the first step and late.

    ``orders``: as of `gqc_lab.studies.continual.upgd_order.random_orders`.
    """
    check_columns("protection", orders, ["case", "normalization", "when", "correlation"])
    times, names = list(orders["when"].unique()), list(orders["normalization"].unique())
    titles = [WHEN.get(when, when) for when in times]
    title = "Order of protection, random utilities"
    figure = new_panels(1, len(times), title, shared_yaxes=True, subplot_titles=titles)
    for i, (case, group) in enumerate(orders.groupby("case", sort=False)):
        style = {"symbol": SYMBOLS[i % 4], "size": 11, "color": OKABE_ITO[i % 7]}
        for column, when in enumerate(times, 1):
            rows = group[group["when"] == when]
            heights = [0.22 * (1 - i) - names.index(name) for name in rows["normalization"]]
            place = {"row": 1, "col": column, "legendgroup": case, "showlegend": column == 1}
            marker = style | {"line": {"width": 2}}
            add_points(figure, rows["correlation"], heights, str(case), marker=marker, **place)
    figure.add_vline(0, line=LEVEL)
    ticks = {"tickvals": [-1, 0, 1], "ticktext": ["reversed", "none", "kept"]}
    figure.update_xaxes(range=[-1.15, 1.15], title_text="rank correlation", **ticks)
    labels = [name.replace("_", "<br>") for name in names]
    figure.update_yaxes(tickvals=[-i for i in range(len(names))], ticktext=labels, showgrid=False)
    return figure.update_layout(height=150 + 70 * len(names), hovermode="closest", margin_t=90)
