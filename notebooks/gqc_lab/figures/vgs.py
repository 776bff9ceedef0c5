"""Figures of the variance gradient scaler: estimates against truth, costs, training."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gqc_lab.figures.style import (
    BLACK,
    LEGEND_ABOVE,
    OKABE_ITO,
    add_line,
    add_points,
    new_figure,
    new_panels,
    uneven_bars,
    with_legend_above,
)
from gqc_lab.stats.analysis import check_columns
from gqc_lab.studies.vgs.streams import VERSIONS

SYMBOLS = ("circle-open", "square-open", "diamond-open", "triangle-up-open", "circle", "square")
FLOOR, ROOF = 1e-3, 1e5  #: ends of the axis of V


def estimates_and_truths(frame: pd.DataFrame) -> go.Figure:
    """Plot each estimator's reading of each stream next to the truth, a row for each stream.

    Values beyond the axis stand at its ends, "0" and "infinite"; so does V of a stream whose signal
    the estimator does not resolve.

    Args:
        frame: readings as of :func:`gqc_lab.studies.vgs.streams.measure`, whose last step is
            drawn; for several seeds the median, with a bar from the smallest to the largest.
    """
    needs = ["stream", "truth", "seed", "estimator", "variance", "is_unresolved"]
    check_columns("estimates_and_truths", frame, needs)
    last = frame[frame["step"] == frame["step"].max()] if "step" in frame else frame
    truths = last.drop_duplicates("stream").set_index("stream")["truth"].sort_values(kind="stable")
    rows = {stream: -i for i, stream in enumerate(truths.index)}
    seeds, count = "one seed", last["seed"].nunique()
    if count > 1:
        seeds = f"<br>median of {count} seeds, bars from least to largest"
    figure = new_figure(f"Six estimators and the truth, {seeds}")
    for i, (estimator, group) in enumerate(last.groupby("estimator", sort=False)):
        values = group["variance"].where(~group["is_unresolved"].astype(bool), math.inf)
        by_stream = values.groupby(group["stream"], sort=False)
        ends = by_stream.agg(mean="median", low="min", high="max").clip(FLOOR, ROOF)
        names = [f"{v:.4g}" if math.isfinite(v) else "not resolved" for v in by_stream.median()]
        place = ends.index.map(rows) + 0.3 - 0.12 * i
        bars = uneven_bars(ends) if by_stream.size().max() > 1 else None
        style: dict[str, Any] = {"error_x": bars, "marker": _marker(i, 11), "text": names}
        style["hovertemplate"] = "%{text}"
        add_points(figure, ends["mean"], place, _estimator_name(str(estimator)), **style)
    _mark_truths(figure, truths, rows)
    powers = [10.0**k for k in range(-2, 5)]
    figure.update_xaxes(
        type="log",
        range=[-3.3, 5.3],
        tickvals=[FLOOR, *powers, ROOF],
        ticktext=["0", *(f"{p:g}" for p in powers), "∞"],
        tickangle=0,
        title_text="noise-to-signal ratio V (∞: or not resolved)",
    )
    figure.update_yaxes(tickvals=list(rows.values()), ticktext=list(rows), showgrid=False)
    return figure.update_layout(height=230 + 70 * len(rows), hovermode="closest", **LEGEND_ABOVE)


def against(frame: pd.DataFrame, x: str, title: str, x_titles: Sequence[str]) -> go.Figure:
    """Plot V of each estimator and the truth against ``x``, both log, by kind of stream.

    Args:
        frame: readings with ``kind``, ``x``, ``truth``, ``estimator``, ``variance``; several seeds:
            their median.
        x: column that varies; title: of the figure; x_titles: of the panels' axes.
    """
    check_columns("against", frame, ["kind", x, "truth", "estimator", "variance"])
    kinds = list(frame["kind"].unique())
    num_columns = min(3, len(kinds))
    places = [{"row": i // num_columns + 1, "col": i % num_columns + 1} for i in range(len(kinds))]
    num_rows = places[-1]["row"]
    grid = {"shared_yaxes": True, "subplot_titles": kinds}
    figure = new_panels(num_rows, num_columns, title, **grid).update_layout(hovermode="closest")
    with_legend_above(figure, 300 * num_rows)
    order = list(frame["estimator"].unique())
    for place, (_, group) in zip(places, frame.groupby("kind", sort=False), strict=True):
        for estimator, rows in group.groupby("estimator", sort=False):
            middle = rows.groupby(x)["variance"].median()
            name, marker = _estimator_name(str(estimator)), _marker(order.index(estimator), 9)
            line = {"color": marker["color"], "width": 1.5}
            style: dict[str, Any] = {"marker": marker, "line": line, "mode": None, **place}
            add_points(figure, middle.index, middle, name, is_shared=True, **style)
        truth = group.groupby(x)["truth"].first()
        black = {"color": BLACK, "width": 4, "dash": "dot"}
        add_line(figure, truth.index, truth, "truth", black, is_shared=True, **place)
    for place, name in zip(places, x_titles, strict=True):
        figure.update_xaxes(type="log", dtick=1, title_text=name, tickformat="~s", **place)
    figure.update_yaxes(type="log", dtick=1, tickformat="~g", exponentformat="none")
    return figure.update_yaxes(title_text="noise-to-signal ratio V", col=1)


def error_against_memory(frame: pd.DataFrame) -> go.Figure:
    """Plot the error of V against bytes per parameter, both log; the legend states the time.

    Args:
        frame: a row for each estimator: ``estimator``, ``error`` (relative, > 0),
            ``bytes_per_parameter`` (> 0), ``time`` (in steps of AdamW); of several rows the mean.
    """
    needs = ["estimator", "error", "bytes_per_parameter", "time"]
    check_columns("error_against_memory", frame, needs)
    groups = frame.groupby("estimator", sort=False)
    runs = f", mean of {n} runs" if (n := int(groups.size().max())) > 1 else ""
    title = f"Error and memory (time in steps of AdamW){runs}"
    figure = new_figure(title, height=460, hovermode="closest")
    for i, row in enumerate(groups[needs[1:]].mean().reset_index().to_dict("records")):
        name = f"{_estimator_name(row['estimator'])}: {row['time']:.2g}"
        marker = _marker(i, 12)
        add_points(figure, [row["bytes_per_parameter"]], [row["error"]], name, marker=marker)
    figure.update_xaxes(type="log", dtick=1, title_text="statistics [bytes/parameter]")
    figure.update_yaxes(type="log", dtick=1, title_text="relative error of V, root mean square")
    return figure.update_layout(xaxis_exponentformat="power", yaxis_exponentformat="power")


def _mark_truths(figure: go.Figure, truths: pd.Series, rows: dict[str, int]) -> None:
    """Draw a thick bar in each row, and a pale line between rows."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for stream, row in rows.items():
        x = max(truths[stream], FLOOR) if truths[stream] < ROOF else ROOF  # or committed as none
        xs += [x, x, None]
        ys += [row - 0.42, row + 0.42, None]
        figure.add_hline(y=row - 0.5, line={"color": "#e5e5e5", "width": 1})
    line = {"color": BLACK, "width": 4}
    figure.add_scatter(x=xs, y=ys, name="truth", mode="lines", line=line, hoverinfo="skip")


def _estimator_name(label: str) -> str:
    return f"{label} ({VERSIONS[label]})" if label in VERSIONS else label


def _marker(i: int, size: int) -> dict[str, Any]:
    style = {"color": OKABE_ITO[i % len(OKABE_ITO)], "line": {"width": 2}}
    return {"symbol": SYMBOLS[i % 6], "size": size, **style}
