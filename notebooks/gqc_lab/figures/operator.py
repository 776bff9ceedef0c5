"""Figures of operator learning: fields in space and time, spectra, gradient norms, curricula."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from gqc_lab.figures.style import (
    BLACK,
    DASHES,
    OKABE_ITO,
    add_curve,
    add_line,
    add_points,
    band,
    new_figure,
    new_panels,
    nth_style,
    plain_numbers,
    with_legend_above,
)
from gqc_lab.stats.analysis import check_columns

INTERVAL = 0.1  #: between rows of a field [time]
MAX_CELLS = 64  #: positions of a space-time picture
DIVERGING = ((0.0, OKABE_ITO[0]), (0.5, "#f7f7f7"), (1.0, OKABE_ITO[1]))
TICKS = [float(f"1e{k}") for k in range(-12, 16)]


def space_time(truth: NDArray[np.floating], predicted: NDArray[np.floating]) -> go.Figure:
    """Plot the true field, the prediction and the error over position and time.

    Args:
        truth, predicted: shape (times, points), every `INTERVAL` from time 0, over x in [0, 1).
    Raises: ValueError: their shapes differ.
    """
    if truth.shape != predicted.shape or truth.ndim != 2:
        raise ValueError(
            f"space_time: truth of shape {truth.shape}, predicted of shape {predicted.shape}: "
            "expected the same (times, points)"
        )
    every = max(1, truth.shape[1] // MAX_CELLS)
    x = plain_numbers(np.arange(0, truth.shape[1], every) / truth.shape[1])
    t = plain_numbers(INTERVAL * np.arange(len(truth)))
    titles, title = ("truth", "prediction", "prediction - truth"), "A rollout of the operator"
    options = {"subplot_titles": titles, "horizontal_spacing": 0.04}
    figure = new_panels(1, 3, title, shared_yaxes=True, **options)
    for column, field in enumerate((truth, predicted, predicted - truth), 1):
        z = [plain_numbers(row) for row in field[:, ::every]]
        axis = "coloraxis2" if column == 3 else "coloraxis"
        figure.add_heatmap(x=x, y=t, z=z, coloraxis=axis, row=1, col=column)
    largest = float(np.abs(truth).max())
    error = max(float(np.abs(predicted - truth).max()), 1e-12)
    bars = {"orientation": "h", "y": -0.22, "yanchor": "top", "thickness": 12}
    for name, limit, place, title in (
        ("coloraxis", largest, {"x": 0.33, "len": 0.6}, "u"),
        ("coloraxis2", error, {"x": 0.84, "len": 0.3}, "error of u"),
    ):
        bar = {**bars, **place, "title": {"text": title, "side": "bottom"}}
        colors = {"colorscale": DIVERGING, "cmin": -limit, "cmax": limit, "colorbar": bar}
        figure.update_layout({name: colors})
    figure.update_layout(height=470, margin={"t": 90, "b": 130}, hovermode="closest")
    figure.update_xaxes(title_text="position x", rangemode="normal")
    return figure.update_yaxes(title_text="time t", col=1)


def spectra(
    truth: NDArray[np.floating], predicted: NDArray[np.floating], rows: Sequence[int]
) -> go.Figure:
    """Plot the amplitude of each wave number in fields as of :func:`space_time`, at some times."""
    figure = new_figure("Spectrum of the field")
    modes = np.arange(1, truth.shape[1] // 2)
    for color, row in zip(OKABE_ITO, rows, strict=False):
        for name, field, dash in (("truth", truth, "solid"), ("prediction", predicted, "dash")):
            amplitude = 2 * np.abs(np.fft.rfft(field[row], norm="forward"))[1 : len(modes) + 1]
            label = f"{name}, t = {row * INTERVAL:.1f}"
            add_line(figure, modes, amplitude, label, {"color": color, "dash": dash, "width": 2})
    figure.update_xaxes(
        type="log", title_text="wave number [1/period]", rangemode="normal", dtick=1
    )
    figure.update_yaxes(type="log", title_text="amplitude of u", tickvals=TICKS, tickformat=".0e")
    return figure


def norms_by_part(history: pd.DataFrame, clip: dict[str, float] | None = None) -> go.Figure:
    """Plot gradient norms before clipping of encoder, approximator and decoder, by method.

    Lines are the largest norm of each epoch; epochs before 0 are the pretraining.

    Args:
        history: frame of `operator_measures.by_epoch`, of one seed.
        clip: method -> bound, drawn as a line.
    """
    parts = [str(c) for c in history if str(c).startswith("grad_norm/")]
    check_columns("norms_by_part", history, ["method", "epoch", "grad_norm"])
    methods = list(history["method"].unique())
    figure = _panels(methods, "Largest gradient norm of an epoch, before clipping")
    for i, method in enumerate(methods):
        rows = history[history["method"] == method]
        more = _place(i, len(methods)) | {"is_shared": True}
        for number, part in enumerate(parts):
            curve = rows.assign(**{part: rows[part].where(rows[part] > 0)})  # 0: it did not learn
            name = part.split("/")[1]
            add_curve(figure, curve, "epoch", part, name, nth_style(number), **more)
        if clip and method in clip:
            bound = rows.assign(bound=clip[method])
            style = {"color": BLACK, "dash": "dot", "width": 2}
            add_curve(figure, bound, "epoch", "bound", "bound", style, **more)
    figure.update_yaxes(type="log", tickvals=TICKS, tickformat=".0e")
    return figure.update_yaxes(title_text="norm [loss per unit of a parameter]", col=1)


def over_epochs(frame: pd.DataFrame, columns: dict[str, str], title: str) -> go.Figure:
    """Plot columns over epochs, a panel for each, a line for each method (mean over seeds).

    Args:
        frame: of `operator_measures.by_epoch`; a gap where a run has no finite value.
        columns: column -> title of its panel, with the unit.
    """
    check_columns("over_epochs", frame, ["method", "epoch", *columns])
    rows = frame[frame["epoch"] >= 0]
    figure = _panels(list(columns.values()), title)
    for panel, column in enumerate(columns):
        values = rows[["method", "epoch", column]].replace([np.inf, -np.inf], np.nan)
        place = _place(panel, len(columns))
        for i, method in enumerate(rows["method"].unique()):
            runs = values[values["method"] == method].groupby("epoch")[column]
            curve = runs.mean().where(runs.count() == runs.size().max()).reset_index()
            more = {**place, "is_shared": True}
            add_curve(figure, curve, "epoch", column, str(method), nth_style(i), **more)
        figure.update_yaxes(**place, **_scale(values[column]))
    return figure.update_yaxes(matches=None, showticklabels=True)


def against_weight(
    results: pd.DataFrame, reported: Mapping[float, float] | None = None, limit: float | None = None
) -> go.Figure:
    """Plot the largest gradient norm of a run against the weight of its inverse losses.

    Of several runs the median, in a band from the least to the largest.  Runs with a loss or
    gradient that is not finite are crosses on the upper edge.

    Args:
        results: ``variant``, ``inverse_weight`` > 0, ``max_grad_norm`` and ``num_not_finite``.
        reported: weight -> norm of other people's runs, drawn as stars.
        limit: the norm aimed at, drawn as a level.
    """
    y = "max_grad_norm"
    check_columns("against_weight", results, ["variant", "inverse_weight", "num_not_finite", y])
    repeats = results.groupby(["variant", "inverse_weight"]).size().max()
    what = f":<br>median of {repeats} seeds, band from least to largest" if repeats > 1 else ""
    figure = new_figure(f"Where training explodes{what}")
    finite = results[np.isfinite(results[y].astype(float))]
    top = 3 * float(finite[y].max()) if len(finite) else 1.0
    for i, (variant, rows) in enumerate(results.groupby("variant", sort=False)):
        style = {"color": OKABE_ITO[i % 7]}
        good = rows[(rows["num_not_finite"] == 0) & rows.index.isin(finite.index)]
        runs = good.groupby("inverse_weight")[y]
        curve = runs.median().reset_index()
        if runs.size().max() > 1:
            bounds = runs.agg(low="min", high="max").reset_index()
            figure.add_scatter(**band(bounds, "inverse_weight", style["color"]))
        line = {**style, "dash": DASHES[i % 6]}
        add_curve(figure, curve, "inverse_weight", y, str(variant), line, mode="lines+markers")
        bad = rows.loc[rows["num_not_finite"] > 0, "inverse_weight"].tolist()
        if bad:
            cross, name = {**style, "symbol": "x", "size": 10}, f"{variant}: NaN or infinite"
            add_points(figure, bad, [top] * len(bad), name, marker=cross)
    if reported:
        star = {"color": BLACK, "symbol": "star", "size": 12}
        add_points(figure, list(reported), list(reported.values()), "reported", marker=star)
    if limit is not None:
        level = {"color": BLACK, "width": 1.5, "dash": "dot"}
        ends = results["inverse_weight"].agg(["min", "max"])
        add_line(figure, ends, [limit, limit], f"aim: below {limit:g}", level)
    figure.update_xaxes(type="log", title_text="weight of the inverse losses", rangemode="normal")
    figure.update_xaxes(tickvals=TICKS, tickformat="~g")
    y_title = "largest gradient norm<br>[loss per unit of a parameter]"
    return figure.update_yaxes(type="log", title_text=y_title, exponentformat="power", dtick=1)


def curves(
    frame: pd.DataFrame, y: str, title: str, y_title: str, limit: float | None = None
) -> go.Figure:
    """Plot ``y`` against ``epoch``, a line for each ``name``, and ``limit`` as a level."""
    check_columns("curves", frame, ["name", "epoch", y])
    figure = new_figure(title, showlegend=True, xaxis_title_text="epoch")
    for i, (name, rows) in enumerate(frame.groupby("name", sort=False)):
        add_line(figure, rows["epoch"], rows[y], str(name), nth_style(i, width=2.5))
    if limit is not None:
        line = {"color": BLACK, "width": 1.5, "dash": "dot"}
        figure.add_hline(limit, line=line, annotation_text=f"{limit:g}")
    return figure.update_yaxes(title_text=y_title, rangemode="tozero")


def _scale(values: pd.Series) -> dict[str, Any]:
    """Use a log axis, with fitting ticks, if values differ by a factor of ten or more."""
    positive = values[values > 0]
    ratio = positive.max() / positive.min() if len(positive) else 1.0
    if ratio < 10:
        return {"type": "linear"}
    if ratio < 300:
        ticks = [m * t for t in TICKS for m in (1, 2, 5)]
        return {"type": "log", "tickvals": ticks, "tickformat": "~g"}
    return {"type": "log", "tickvals": TICKS, "tickformat": ".0e"}


def _panels(titles: Sequence[str], title: str) -> go.Figure:
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    figure = new_panels(
        rows,
        columns,
        title,
        subplot_titles=list(titles),
        shared_yaxes="all",
        vertical_spacing=0.5 / (rows + 1),
        horizontal_spacing=0.09,
    )
    figure.update_xaxes(rangemode="normal").update_xaxes(title_text="epoch", row=rows)
    return with_legend_above(figure.update_layout(hovermode="closest"), 230 * rows + 20)


def _place(panel: int, panels: int) -> dict[str, int]:
    columns = min(3, panels)
    return {"row": panel // columns + 1, "col": panel % columns + 1}
