"""Curves of training runs: loss, gradient norm and draws against tokens, steps or time."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gqc_lab.figures.style import (
    HOUSE,
    LABELS,
    LOG_TICKS,
    add_curve,
    band,
    dashes_on_top,
    each_method,
    first_seed,
    new_figure,
    thin,
)
from gqc_lab.stats.analysis import at_equal, summarize

THRESHOLD = "gradient_norm_threshold"
MAX_DOTTED = 4  #: methods whose single steps are drawn


def loss_against(history: pd.DataFrame, x: str = "tokens", y: str = "val_loss") -> go.Figure:
    """Plot ``y`` for each method; for several seeds, their mean with a band of its 95 % interval.

    Args:
        history: records with ``method``, ``seed``, ``x`` and ``y``; rows without ``y`` are skipped.
        x: a column that grows during a run: tokens, steps, seconds, microbatch.
    Raises: ValueError: a run has no ``y``, or a seed has several runs.
    """
    quantity = _label(y).split(" [")[0]
    figure = _figure(f"{quantity.capitalize()} against {_label(x)}", x, y)
    if "tokens" not in history:  # the loss has another unit
        figure.update_yaxes(title_text=quantity)
    for method, style, records in each_method("loss_against", history, [x, y]):
        grids = {tuple(run[x]) for _, run in records.dropna(subset=[x, y]).groupby("seed")}
        aligned = at_equal(records, x, y, points=None if len(grids) <= 1 else 100)
        curve = thin(summarize(aligned, x, y), "mean")
        seeds, name = aligned["seed"].nunique(), method
        if seeds > 1:
            name = f"{method}: mean of {seeds} seeds<br>and its 95% interval"
            hidden = {"name": f"{method}: interval", "legendgroup": method}
            figure.add_scatter(**band(curve, x, style["color"]), **hidden)
        add_curve(figure, curve, x, "mean", name, style, legendgroup=method)
    return dashes_on_top(_with_room(figure))


def norm_against_threshold(history: pd.DataFrame, x: str = "tokens") -> go.Figure:
    """Plot the norm of the mean gradient at each step, and its threshold, of the first seed.

    A cross marks a step above its threshold: ``max_draws`` or a flush forced it.  Methods that read
    no norm are left out.
    """
    figure = _figure("Norm of the mean gradient at each step", x, "grad_norm")
    figure.update_yaxes(type="log", tickvals=LOG_TICKS, tickformat="~g")
    needs = [x, "stepped", "grad_norm", THRESHOLD]
    for method, style, records in each_method("norm_against_threshold", history, needs):
        records = first_seed(records)
        steps = records[records["stepped"]].dropna(subset=["grad_norm"])
        forced = steps[steps["grad_norm"] > steps[THRESHOLD]]
        color = style["color"]
        line = {"color": color, "width": 1}
        add_curve(figure, steps, x, "grad_norm", f"{method}: norm", line)
        name = f"{method}: forced,<br>{len(forced)} of {len(steps)} steps"
        cross = {"mode": "markers", "marker": {"symbol": "x", "size": 6, "color": color}}
        add_curve(figure, forced, x, "grad_norm", name, None, **cross)
        bound = records.dropna(subset=[THRESHOLD])
        black = {"color": "#000000", "width": 2.5, "dash": style["dash"]}
        add_curve(figure, bound, x, THRESHOLD, f"{method}: threshold", black)
    return _or_say(figure, "no method here reads a gradient norm")


def draws_per_step(history: pd.DataFrame, x: str = "tokens", by: str = "method") -> go.Figure:
    """Plot the microbatches averaged into each step (log scale), with a moving average.

    Of the first seed of each method.  The average runs over a fiftieth of the steps.  Up to
    `MAX_DOTTED` methods have a dot for each step too; more would hide each other.  With ``by``
    "seed" there is a curve for each seed of one method instead.
    """
    if by != "method":
        history = history.assign(method=by + " " + history[by].astype(str))
    figure = _figure("Draws per step", x, "num_draws")
    figure.update_yaxes(type="log", dtick=np.log10(2).item())
    methods = list(each_method("draws_per_step", history, [x, "stepped", "num_draws"]))
    for method, style, records in methods:
        steps = first_seed(records).query("stepped")
        window = max(1, len(steps) // 50)
        mean = steps["num_draws"].rolling(window, center=True, min_periods=1).mean()
        steps = steps.assign(moving_mean=mean)
        if len(methods) <= MAX_DOTTED:
            marker = {"size": 5, "opacity": 0.4, "color": style["color"]}
            dots = {"mode": "markers", "marker": marker, "hoverinfo": "skip", "showlegend": False}
            add_curve(figure, steps, x, "num_draws", method, None, **dots)
        name = f"{method}: {len(steps)} steps,<br>mean {steps['num_draws'].mean():.2f}"
        add_curve(figure, steps, x, "moving_mean", name, style)
    return _or_say(dashes_on_top(_with_room(figure)), "no step was made")


def batch_loss(results: pd.DataFrame, history: pd.DataFrame) -> go.Figure:
    """:func:`loss_against` of a batch's runs, in the form that a batch file's report asks for."""
    return loss_against(history)


def _figure(title: str, x: str, y: str) -> go.Figure:
    axes = {"xaxis_title_text": _label(x), "yaxis_title_text": _label(y)}
    return new_figure(title, showlegend=True, **axes)


def _label(column: str) -> str:
    return LABELS.get(column, column.replace("_", " "))


def _with_room(figure: go.Figure) -> go.Figure:
    """Make the figure as high as its legend, which would be cut off."""
    names = [trace.name for trace in figure.data if trace.showlegend is not False]
    lines = sum(1 + name.count("<br>") for name in names)
    return figure.update_layout(height=max(HOUSE.layout.height, 130 + 25 * lines))


def _or_say(figure: go.Figure, why: str) -> go.Figure:
    """Say why axes are empty, which would look like a mistake."""
    if not figure.data:
        middle = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
        figure.add_annotation(text=why, **middle)
        figure.update_layout(xaxis_visible=False, yaxis_visible=False)
    return figure
