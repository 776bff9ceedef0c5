"""Figures of UPGD: gates by normalization, and what learners of task streams retain."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from gqc_lab.figures.style import (
    OKABE_ITO,
    add_line,
    band,
    method_styles,
    new_panels,
    over_seeds,
    plain_numbers,
    uneven_bars,
    with_legend_above,
)
from gqc_lab.stats.analysis import ONE_RUN, check_columns, summarize

LABELS = {
    "dead_share": "share of dead units",
    "weight_norm": "norm of the weights",
    "noise_to_signal": "noise / signal",
    "factor": "factor of VGS",
}
STREAMS = {"input_permuted": "permuted inputs", "label_permuted": "permuted labels"}
IN_PERCENT = ("online_accuracy", "first_accuracy", "last_accuracy", "dead_share")


def gate_histograms(bars: pd.DataFrame) -> go.Figure:
    """Plot histograms of gates: a row for each normalization, a column for each step.

    ``bars``: as of `gqc_lab.studies.continual.upgd_gates.watch`; several seeds: their mean.
    """
    check_columns("gate_histograms", bars, ["normalization", "step", "left", "right", "share"])
    names, steps = list(bars["normalization"].unique()), sorted(bars["step"].unique())
    figure = new_panels(
        len(names),
        len(steps),
        "Gates of all weights",
        shared_xaxes=True,
        shared_yaxes=True,
        column_titles=[f"step {step:,}" for step in steps],
        row_titles=[name.replace("_", "<br>") for name in names],
        vertical_spacing=0.06,
        horizontal_spacing=0.02,
    )
    for (name, step), panel in bars.groupby(["normalization", "step"], sort=False):
        mean = panel.groupby(["left", "right"])["share"].mean().reset_index()
        figure.add_bar(
            x=plain_numbers((mean["left"] + mean["right"]) / 2),
            y=plain_numbers(100 * mean["share"]),
            width=plain_numbers(mean["right"] - mean["left"]),
            marker={"color": OKABE_ITO[names.index(name) % len(OKABE_ITO)], "line_width": 0},
            name=str(name),
            row=names.index(name) + 1,
            col=steps.index(step) + 1,
        )
    figure.update_layout(height=150 + 130 * len(names), margin={"t": 90, "r": 80}, bargap=0)
    figure.update_layout(showlegend=False)
    figure.update_xaxes(range=[-0.03, 1.03], tickvals=[0, 0.5, 1], ticktext=["0", "½", "1"])
    figure.update_xaxes(title_text="gate", row=len(names))
    figure.update_yaxes(range=[0, 104], tickvals=[0, 50, 100])
    return figure.update_yaxes(title_text="weights [%]", col=1, row=(len(names) + 1) // 2)


def by_task(
    tasks: pd.DataFrame,
    measures: Sequence[str] = ("online_accuracy",),
    over: int = 1,
    title: str = "What is learned in each task",
    has_bands: bool = False,
) -> go.Figure:
    """Plot means over seeds against tasks: a row for each measure, a column for each stream.

    Args:
        tasks: rows of `gqc_lab.studies.continual.training.Continual.tasks`.
        over: tasks of a centred moving average of each run.
        title: what is shown; the next line says what curves and bands are.
        has_bands: draw the 95 % intervals over seeds too.
    """
    check_columns("by_task", tasks, ["stream", "method", "seed", "task", *measures])
    tasks = tasks.assign(method=tasks["method"].replace({"l2": "sgd, weight decay"}))
    streams, styles = list(tasks["stream"].unique()), method_styles(tasks["method"], width=2)
    averaged = f", moving mean of {over} tasks" if over > 1 else ""
    bands = ", bands: 95 % intervals" if has_bands else ""
    figure = new_panels(
        len(measures),
        len(streams),
        f"{title}{averaged}:<br>{over_seeds(tasks)}{bands}",
        shared_xaxes=True,
        shared_yaxes=True,
        column_titles=[STREAMS.get(stream, stream) for stream in streams],
        vertical_spacing=0.18 / max(1, len(measures)),
        horizontal_spacing=0.04,
    )
    for (stream, method), rows in tasks.groupby(["stream", "method"], sort=False):
        for number, measure in enumerate(measures, 1):
            runs = rows.sort_values("task").astype({measure: float}).groupby("seed")[measure]
            smooth = runs.rolling(over, center=True, min_periods=1).mean().droplevel(0)
            smooth *= 100 if measure in IN_PERCENT else 1
            points = summarize(rows.assign(smooth=smooth), "task", "smooth")
            place = {"row": number, "col": streams.index(stream) + 1}
            style = styles[str(method)]
            if has_bands:
                figure.add_scatter(**band(points, "task", style["color"]), **place)
            more = {**place, "is_shared": True}
            add_line(figure, points["task"], points["mean"], str(method), style, **more)
    for number, measure in enumerate(measures, 1):
        figure.update_yaxes(title_text=_label(measure), row=number, col=1)
        if measure == "noise_to_signal":
            figure.update_yaxes(type="log", tickformat="~g", row=number)
    figure.update_xaxes(rangemode="normal")
    figure.update_xaxes(title_text="task", row=len(measures))
    return with_legend_above(figure, 150 * len(measures) + 20, -(-len(styles) // 4))


def against_lr(results: pd.DataFrame) -> go.Figure:
    """Plot the mean online accuracy and its interval against the learning rate."""
    measure = "online_accuracy"
    check_columns("against_lr", results, ["stream", "normalization", "lr", "seed", measure])
    streams = list(results["stream"].unique())
    styles = method_styles(results["normalization"], width=2)
    figure = new_panels(
        1,
        len(streams),
        "Online accuracy by normalization and learning rate",
        shared_yaxes=True,
        column_titles=[STREAMS.get(stream, stream) for stream in streams],
        horizontal_spacing=0.04,
    )
    percent = results.assign(percent=100 * results[measure].astype(float))
    means = summarize(percent, ["stream", "normalization", "lr"], "percent")
    for (stream, name), rows in means.groupby(["stream", "normalization"], sort=False):
        i, rows = list(styles).index(str(name)), rows.sort_values("lr")
        place = {"row": 1, "col": streams.index(stream) + 1, "is_shared": True}
        x = rows["lr"] * 1.03 ** (i - (len(styles) - 1) / 2)  # that bars stay apart
        more = {"mode": "lines+markers", "error_y": uneven_bars(rows), **place}
        add_line(figure, x, rows["mean"], str(name), styles[str(name)], **more)
    figure.update_xaxes(type="log", title_text="learning rate", tickformat="~g", dtick="D2")
    figure.update_xaxes(rangemode="normal").update_yaxes(title_text=_label(measure), col=1)
    return with_legend_above(figure, 300, -(-len(styles) // 4))


def batch_tasks(results: pd.DataFrame, history: pd.DataFrame) -> go.Figure:
    """:func:`by_task` of a batch's runs, in the form that a batch file's report asks for."""
    if history.duplicated(["stream", "method", "seed", "task"]).any():
        raise ValueError(f"batch_tasks: several rows of a seed for one task: {ONE_RUN}")
    return by_task(history, ("online_accuracy", "plasticity"), over=5)


def _label(measure: str) -> str:
    label = LABELS.get(measure, measure.replace("_", " "))
    return f"{label} [%]" if measure in IN_PERCENT else label
