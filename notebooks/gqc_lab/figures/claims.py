"""Figures of the comparisons that decide the claims on gradient quality control.

Bars are 95 % intervals over seeds, where there are two or more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gqc_lab.figures.style import (
    BLACK,
    DASHES,
    HOUSE,
    LABELS,
    LEVEL,
    OKABE_ITO,
    SYMBOLS,
    add_curve,
    add_line,
    add_points,
    dashes_on_top,
    mean_curve,
    method_styles,
    new_figure,
    new_panels,
    over_seeds,
    uneven_bars,
)
from gqc_lab.stats.analysis import check_columns, paired_difference, power_law, summarize
from gqc_lab.stats.numbers import decimals

RATIOS = [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10]
WIDE = [0.1, 0.3, 1, 3, 10]  #: ticks that stay apart where ratios differ by more than fivefold
TWOS = {"type": "log", "dtick": 0.30103, "tickformat": ".4~s", "rangemode": "normal"}
SIDE_BY_SIDE = {"shared_yaxes": True, "horizontal_spacing": 0.06}
BELOW = {"orientation": "h", "x": 0, "y": -0.25, "yanchor": "top"}
PANEL, GAP, EDGES = 190, 44, 150  #: heights of a panel, between two, above and below all [pixels]


def comparison_losses(history: pd.DataFrame, y: str = "val_loss") -> go.Figure:
    """Plot ``y`` against tokens, mean over seeds, in a panel for each ``comparison``."""
    check_columns("comparison_losses", history, ["comparison", "method", "seed", "tokens", y])
    names, styles = list(history["comparison"].unique()), method_styles(history["method"], width=2)
    height = PANEL * len(names) + GAP * (len(names) - 1)
    title = f"Loss at equal tokens, {over_seeds(history)}"
    spacing = {"shared_xaxes": True, "vertical_spacing": GAP / height}
    figure = new_panels(len(names), 1, title, subplot_titles=names, **spacing)
    for row, name in enumerate(names, 1):
        panel = history[history["comparison"] == name]
        legend = f"legend{row}" if row > 1 else "legend"
        for method, runs in panel.groupby("method", sort=False):
            mean = mean_curve(runs, "tokens", y)
            place = {"row": row, "col": 1, "legend": legend}
            add_curve(figure, mean, "tokens", y, str(method), styles[str(method)], **place)
        top = 1 - (row - 1) * (PANEL + GAP) / height
        figure.update_layout({legend: {"x": 1.02, "y": top, "yanchor": "top"}})
    top = EDGES - HOUSE.layout.margin.b
    figure.update_layout(height=EDGES + height, showlegend=True, margin_t=top)
    figure.update_yaxes(title_text=LABELS.get(y, y).replace(" [", "<br>["))
    return dashes_on_top(figure.update_xaxes(title_text=LABELS["tokens"], row=len(names)))


def batch_invariance(results: pd.DataFrame) -> go.Figure:
    """Plot the logical batch size and the final loss against the physical batch size."""
    shown = {"mean_logical_batch_examples": "sequences per step", "val_loss": LABELS["val_loss"]}
    check_columns("batch_invariance", results, ["microbatch_size", "seed", *shown])
    titles = ["logical batch", "final loss"]
    title = "Does the logical batch follow the physical one?"
    figure = new_panels(1, 2, title, subplot_titles=titles, horizontal_spacing=0.16)
    styles = method_styles(["gnts"], width=2)
    for column, (name, label) in enumerate(shown.items(), 1):
        points = summarize(results, "microbatch_size", name)
        _points(figure, points, "microbatch_size", "gnts", styles, row=1, col=column)
        figure.update_yaxes(title_text=label, row=1, col=column)
    sizes = sorted(results["microbatch_size"].unique())
    line = {"color": BLACK, "dash": "dash", "width": 1.5}
    add_line(figure, sizes, sizes, "one microbatch", line)
    figure.update_xaxes(title_text="sequences per microbatch", **TWOS)
    figure.update_layout(height=480, margin_t=80, legend=BELOW)
    return figure.update_yaxes(**TWOS, row=1, col=1)


def warmup_panels(history: pd.DataFrame) -> go.Figure:
    """Plot the threshold, the steps made and the training loss during warmup, mean over seeds.

    Twice as long as ``is_warmup`` says is drawn.
    """
    shown = {"gradient_norm_threshold": "threshold [loss/parameter]", "steps": "optimizer steps"}
    shown["loss"] = LABELS["loss"]
    check_columns("warmup_panels", history, ["method", "seed", "microbatch", "is_warmup", *shown])
    end = history.loc[history["is_warmup"], "microbatch"].max()
    near = history[history["microbatch"] <= 2 * end]
    title = f"During the warmup of the threshold, {over_seeds(near)}"
    figure = new_panels(1, 3, title, horizontal_spacing=0.16)
    styles = method_styles(near["method"], width=2)
    for method, runs in near.groupby("method", sort=False):
        means = runs.groupby("microbatch")[list(shown)].mean()
        means["loss"] = means["loss"].rolling(11, center=True, min_periods=1).mean()
        for column, name in enumerate(shown, 1):
            more = {"row": 1, "col": column, "is_shared": True}
            curve = means[name].reset_index()
            add_curve(figure, curve, "microbatch", name, str(method), styles[method], **more)
    for column, label in enumerate(shown.values(), 1):
        figure.update_yaxes(title_text=label, row=1, col=column)
    figure.update_yaxes(type="log", dtick=1, row=1, col=1)
    figure.add_vline(end, line=LEVEL)
    return figure.update_layout(height=440, legend=BELOW).update_xaxes(title=LABELS["microbatch"])


def angles(history: pd.DataFrame, x: str = "tokens", claimed: float | None = None) -> go.Figure:
    """Plot the angle between gradient and momentum, measured and predicted, mean over seeds.

    Args:
        history: records with ``kind``: of kind "step" with ``x``, ``angle`` and ``angle_before``,
            of kind "probe" with ``x`` and, where it is known, ``predicted_angle``.
        claimed: an angle to draw as a level.
    """
    names = {"angle": "momentum with<br>this gradient", "angle_before": "momentum before it"}
    check_columns("angles", history, ["kind", x, *names])
    steps = history[history["kind"] == "step"].astype(dict.fromkeys(names, float))
    seeds = over_seeds(history.assign(method=0)) if "seed" in history else "one seed"
    figure = new_figure(f"Angle of gradient and Adam's momentum:<br>{seeds}, mean of 25 steps")
    styles = method_styles(names.values(), width=2)
    for column, name in names.items():
        means = steps.groupby(x)[column].mean()
        # From the first step on, whose momentum is the gradient: a centred mean would hide it.
        curve = means.rolling(25, min_periods=1).mean().dropna().reset_index()
        add_curve(figure, curve, x, column, name, styles[name])
    if "predicted_angle" in history:
        moments = history[history["kind"] == "probe"].groupby(x)["predicted_angle"].mean()
        marker = {"color": BLACK, "size": 9, "symbol": "diamond"}
        name = "predicted,<br>with this gradient"
        add_points(figure, moments.index, moments, name, marker=marker)
    levels = {64.16: "noise alone, with it", 90.0: "noise alone, before it"}
    if claimed is not None:
        levels[claimed] = f"claimed: below {claimed:g}°"
    for level, text in levels.items():
        # where the curves are not, which come from above this level and from below the others
        side = "bottom right" if level == 90 else "top right"
        figure.add_hline(level, line=LEVEL, annotation_text=text, annotation_position=side)
    figure.update_xaxes(title_text=LABELS.get(x, x))
    return figure.update_yaxes(title_text="angle [degrees]", rangemode="tozero")


def norms_against_draws(history: pd.DataFrame) -> go.Figure:
    """Plot the norm of a mean of n microbatch gradients relative to one, with predictions.

    Of rows of kind "probe", see :func:`angles`; of several seeds the mean.
    """
    needs = ["kind", "microbatch", "num_draws", "norm_ratio", "predicted_ratio"]
    check_columns("norms_against_draws", history, needs)
    probes = history[(history["kind"] == "probe") & (history["num_draws"] > 0)]
    keys = ["microbatch", "num_draws"]
    probes = probes.groupby(keys)[["norm_ratio", "predicted_ratio"]].mean().reset_index()
    figure = new_figure("What averaging does to the norm")
    for i, (moment, rows) in enumerate(probes.groupby("microbatch")):
        color = {"color": OKABE_ITO[i % len(OKABE_ITO)]}
        n, marker = rows["num_draws"], {**color, "symbol": SYMBOLS[i % 7], "size": 8}
        add_points(figure, n, rows["norm_ratio"], f"after {moment:,.0f} steps", marker=marker)
        line = {**color, "dash": DASHES[i % len(DASHES)], "width": 1.5}
        add_line(figure, n, rows["predicted_ratio"], "predicted", line, showlegend=False)
    draws = probes["num_draws"].drop_duplicates().sort_values()
    add_line(figure, draws, draws**-0.5, "noise alone, 1/√n", {"color": BLACK, "width": 2})
    add_line(figure, draws, 0 * draws + 0.05, "20 times smaller", LEVEL)
    figure.update_xaxes(title_text="microbatches in the mean n", **TWOS)
    ticks = {"tickvals": [1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01], "tickformat": "~g"}
    return figure.update_yaxes(title_text="norm / that of one", type="log", **ticks)


def by_method(
    results: pd.DataFrame,
    measures: Mapping[str, str],
    baseline: str | None = None,
    series: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    by: str = "method",
    level: float | None = None,
    title: str = "",
) -> go.Figure:
    """Plot means over seeds (a gap where one has none) with 95 % intervals, a row for each method.

    Args:
        results: rows with ``by`` (what a row is for), ``seed``, the ``measures`` and ``series``.
        measures: column -> title of its panel's axis, of one or more lines.
        baseline: method whose measures divide the others', seed by seed, in geometric means.
        series: columns whose values are told apart by colour and symbol.
        names: of methods (only these, in order; all if none) and of values of ``series``, in order.
        level: value of the measures to mark, of ratios 1; title: what is shown, its first line.
    """
    check_columns("by_method", results, [by, "seed", *measures, *series])
    results = results.assign(method=results[by])
    names, found = names or {}, list(results["method"].unique())
    methods = [m for m in names if m in found] or [m for m in found if m != baseline]
    groups: list[Any] = [*results.groupby([*series], sort=False)] if series else [((), results)]
    groups.sort(key=lambda pair: [[*names, str(value)].index(str(value)) for value in pair[0]])
    what = f"{title}:<br>" * bool(title) + "paired ratios, " * bool(baseline)
    figure = new_panels(1, len(measures), _with_bars(what, results), **SIDE_BY_SIDE)
    for column, (measure, heading) in enumerate(measures.items(), 1):
        shown = []
        for i, (group, rows) in enumerate(groups):
            means = _means_of(rows, measure, baseline).reindex(methods)
            shown.append(means[["mean", "low", "high"]])
            heights = [0.15 * ((len(groups) - 1) / 2 - i) - k for k in range(len(methods))]
            marker = {"color": OKABE_ITO[i % 7], "symbol": SYMBOLS[i % 7], "size": 8}
            style = {"error_x": uneven_bars(means), "marker": marker, "row": 1, "col": column}
            style["showlegend"] = bool(series) and column == 1
            label = ", ".join(names.get(str(value), str(value)) for value in group)
            add_points(figure, means["mean"], heights, label, **style)
        axis = {"nticks": 6} if baseline is None else _axis_of_ratios(pd.concat(shown))
        figure.update_xaxes(axis, title=heading.replace("\n", "<br>"), col=column)
    if (mark := level if baseline is None else 1) is not None:
        figure.add_vline(mark, line=LEVEL)
    figure.update_xaxes(rangemode="normal").update_yaxes(tickvals=[*range(0, -len(methods), -1)])
    figure.update_yaxes(ticktext=[names.get(m, m) for m in methods], showgrid=False)
    # In pixels, so that the legend stays below the titles of axes whatever the number of rows.
    plot, below = 50 + 40 * len(methods), 65 + 20 * max(t.count("\n") for t in measures.values())
    bottom = below + 40 * bool(series)
    figure.update_layout(legend=BELOW | {"y": -below / plot}, hovermode="closest", margin_t=80)
    return figure.update_layout(height=80 + plot + bottom, margin_b=bottom)


def _axis_of_ratios(shown: pd.DataFrame) -> dict[str, Any]:
    """Return a log axis if means are far apart, with ticks that stay apart."""
    values = shown.to_numpy(dtype=float)
    if not np.nanmax(values[:, 0]) > 1.6 * np.nanmin(values[:, 0]):
        return {"nticks": 6}
    ticks = WIDE if np.nanmax(values) > 5 * np.nanmin(values) else RATIOS
    return {"type": "log", "tickvals": ticks, "tickformat": "~g"}


def _with_bars(what: str, results: pd.DataFrame) -> str:
    """Say for a title what points and bars are."""
    text = f"{what}{over_seeds(results)}"
    text += "" if text.endswith("one seed") else ", bars: 95 % intervals"
    return text[0].upper() + text[1:]


def _means_of(rows: pd.DataFrame, measure: str, baseline: str | None) -> pd.DataFrame:
    """``mean``, ``low`` and ``high`` by method, of the measure or its ratio to the baseline's."""
    if baseline is None:
        return summarize(rows, "method", measure).set_index("method")
    logs = rows.assign(log=np.log(rows[measure].astype(float)))
    means = paired_difference(logs, "log", baseline=baseline).set_index("method")
    return means[["mean", "low", "high"]].map(np.exp)


def power_laws(results: pd.DataFrame) -> go.Figure:
    """Plot the final loss against the budget, with a power law for each method, both log."""
    check_columns("power_laws", results, ["method", "seed", "tokens", "val_loss"])
    figure = new_figure(_with_bars("Final loss against token budget:<br>", results))
    styles = method_styles(results["method"], width=2)
    for method, runs in results.groupby("method", sort=False):
        points = summarize(runs, "tokens", "val_loss")
        tokens = points["tokens"]
        law = power_law(tokens, points["mean"])
        name = f"{method}: exponent {decimals(law.exponent, 3)}<br>of the means, no floor"
        add_line(figure, tokens, law(tokens), name, styles[str(method)])
        _points(figure, points, "tokens", str(method), styles)
    figure.update_xaxes(title_text="token budget", **TWOS)
    ticks = {"tickvals": [1, 1.2, 1.5, 1.75, 2, 2.25, 2.5, 3, 3.5, 4], "tickformat": "~g"}
    return figure.update_yaxes(title_text=LABELS["val_loss"], type="log", **ticks)


def _points(
    figure: go.Figure,
    points: pd.DataFrame,
    x: str,
    name: str,
    styles: dict[str, dict[str, Any]],
    **place: Any,
) -> None:
    symbol = SYMBOLS[list(styles).index(name) % len(SYMBOLS)]
    marker = {"color": styles[name]["color"], "symbol": symbol, "size": 9}
    style = {"marker": marker, "showlegend": name not in {trace.name for trace in figure.data}}
    if points["low"].notna().any():
        style["error_y"] = uneven_bars(points)
    add_points(figure, points[x], points["mean"], name, **style, **place)
