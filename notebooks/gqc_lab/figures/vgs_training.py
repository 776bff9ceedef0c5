"""Figures of training with the variance gradient scaler: losses, resolution, Adam's response."""

import pandas as pd
import plotly.graph_objects as go

from gqc_lab.figures.style import (
    BLACK,
    LEGEND_ABOVE,
    OKABE_ITO,
    add_curve,
    mean_curve,
    new_figure,
    new_panels,
    nth_style,
    over_seeds,
    with_legend_above,
)
from gqc_lab.stats.analysis import check_columns

UNITS = {"digits": "nat", "values": "reward²"}


def loss_panels(history: pd.DataFrame, y: str = "val_loss") -> go.Figure:
    """Plot the mean of ``y`` against steps: a row for each task, a column for each optimizer."""
    keys = ["task", "optimizer", "method", "seed", "microbatch"]
    check_columns("loss_panels", history, [*keys, y])
    tasks, optimizers = list(history["task"].unique()), list(history["optimizer"].unique())
    titles = [f"{task}, {optimizer}" for task in tasks for optimizer in optimizers]
    figure = new_panels(
        len(tasks),
        len(optimizers),
        f"Held-out loss, {over_seeds(history)}",
        shared_xaxes=True,
        shared_yaxes=True,
        subplot_titles=titles,
        vertical_spacing=0.12,
        horizontal_spacing=0.05,
    )
    methods = list(history["method"].unique())
    for (task, optimizer), panel in history.groupby(["task", "optimizer"]):
        row, column = tasks.index(task) + 1, optimizers.index(optimizer) + 1
        place = {"row": row, "col": column, "is_shared": True}
        for i, method in enumerate(methods):
            mean = mean_curve(panel[panel["method"] == method], "microbatch", y)
            add_curve(figure, mean, "microbatch", y, method, nth_style(i), **place)
    for row, task in enumerate(tasks, 1):
        figure.update_yaxes(title_text=f"loss [{UNITS.get(task, 'loss')}]", col=1, row=row)
    figure.update_xaxes(title_text="optimizer steps", row=len(tasks))
    return with_legend_above(figure, 230 * len(tasks) + 20)


def resolution(history: pd.DataFrame, over: int = 25) -> go.Figure:
    """Plot the share of unresolved tensors and the ``would_be_factor`` against steps, by beta.

    Of one seed; ``over``: records of the moving average of the share.
    """
    check_columns(
        "resolution", history, ["beta", "microbatch", "vgs/unresolved", "would_be_factor"]
    )
    titles = ["tensors not resolved", "factor at alpha 0.1"]
    figure = new_panels(1, 2, "How much of the variance is resolved?", subplot_titles=titles)
    for i, (beta, rows) in enumerate(history.groupby("beta", sort=False)):
        share = rows["vgs/unresolved"].rolling(over, min_periods=1).mean()
        for column, values in enumerate([100 * share, rows["would_be_factor"]], 1):
            curve, name = rows.assign(shown=values), f"beta {beta:g}"
            more = {"row": 1, "col": column, "is_shared": True}
            add_curve(figure, curve, "microbatch", "shown", name, nth_style(i), **more)
    figure.update_yaxes(title_text="moving average [%]", range=[-3, 103], col=1)
    figure.update_yaxes(range=[0, 1.05], col=2).update_xaxes(title_text="optimizer steps")
    return with_legend_above(figure, 250)


def update_ratio(frame: pd.DataFrame, over: int = 11) -> go.Figure:
    """Plot the size of Adam's updates with scaling relative to without, and the factor.

    ``over``: records of the moving average of what was ``measured``.
    """
    check_columns("update_ratio", frame, ["microbatch", "measured", "predicted", "factor"])
    smooth = frame["measured"].rolling(over, center=True, min_periods=1).mean()
    figure = new_figure("What Adam makes of a factor", **{"height": 460} | LEGEND_ABOVE)
    curves = {
        "factor on the gradient": (frame["factor"], OKABE_ITO[0], "dash"),
        "size of the update, measured": (smooth, OKABE_ITO[1], "solid"),
        "size of the update, predicted": (frame["predicted"], BLACK, "dot"),
    }
    for name, (values, color, dash) in curves.items():
        style = {"color": color, "dash": dash, "width": 2.5}
        add_curve(figure, frame.assign(shown=values), "microbatch", "shown", name, style)
    figure.update_xaxes(title_text="optimizer steps")
    return figure.update_yaxes(title_text="relative to no scaling", rangemode="tozero")
