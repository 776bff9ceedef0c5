"""Figures of noise scales: measured against the truth, and as a run estimates them.

Frames of measurements have the columns of `gqc_lab.studies.noise.streams.COLUMNS`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gqc_lab.figures.style import (
    BLACK,
    LABELS,
    LEVEL,
    OKABE_ITO,
    add_curve,
    add_line,
    add_points,
    each_method,
    first_seed,
    new_figure,
    new_panels,
    uneven_bars,
)
from gqc_lab.stats.analysis import check_columns, summarize

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star")
CROSSES = ("x", "cross", "x-thin-open", "cross-thin-open", "asterisk-open")
RATIOS = [0.05, 0.1, 0.2, 0.5, 0.8, 1, 1.2, 1.5, 2, 3, 5, 10, 20]
DASHED = {"color": BLACK, "width": 1.5, "dash": "dash"}
UNBOUNDED = 1e9  # length of a bar that is to leave the figure
POINT = ["measurement", "dimension", "truth", "measured", "low", "high"]


def estimates_against_truth(measured: pd.DataFrame) -> go.Figure:
    """Plot the noise scales of each estimator, and those of the two-batch estimator over the truth.

    Bars are the intervals ``low`` to ``high``; one that leaves the figure has no upper bound.

    Args:
        measured: rows of `measure_estimates`; others are left out, and so are unresolved ones.
    """
    check_columns("estimates_against_truth", measured, POINT)
    titles = ("all estimates", "two-batch, over the truth")
    title = "Noise scale of streams where it is known, a point each; bars: 95 % intervals"
    figure = new_panels(1, 2, title, subplot_titles=titles, horizontal_spacing=0.14)
    below = {"orientation": "h", "y": -0.28, "x": 0}
    figure.update_layout(height=480, margin={"t": 80, "b": 130}, legend=below)
    ours = measured[measured["measurement"] == "two-batch"]
    published = measured[measured["measurement"] == "published"]
    estimates = pd.concat([ours, published])
    truths = estimates["truth"].sort_values().unique()
    add_line(figure, truths, truths, "truth", DASHED, row=1, col=1)
    add_line(figure, truths, [1] * len(truths), "truth", DASHED, showlegend=False, row=1, col=2)
    ratio = ours.assign(**{c: ours[c] / ours["truth"] for c in POINT[3:]})
    left: dict[str, Any] = {"row": 1, "col": 1}
    right: dict[str, Any] = {"row": 1, "col": 2, "showlegend": False}
    _add_dimensions(figure, ours, "two-batch, d = {:,}", [OKABE_ITO[0]], **left)
    _add_dimensions(figure, published, "published, d = {:,}", [OKABE_ITO[1]], **left)
    _add_dimensions(figure, ratio, "two-batch, d = {:,}", [OKABE_ITO[0]], **right)
    power = {"type": "log", "exponentformat": "power"}
    figure.update_xaxes(rangemode="normal", title_text="true noise scale R", dtick=1, **power)
    figure.update_yaxes(title_text="estimate [microbatches]", dtick=2, **power, col=1)
    figure.update_yaxes(title_text="ratio", type="log", tickvals=RATIOS, tickformat="~g", col=2)
    figure.update_yaxes(range=_log_range(ratio), col=2)
    return figure.update_yaxes(range=_log_range(estimates), col=1)


def draws_against_prediction(measured: pd.DataFrame) -> go.Figure:
    """Plot mean draws of GNTS, of `measure_draws`, against the predicted number, with intervals."""
    check_columns("draws_against_prediction", measured, POINT)
    rows = measured[measured["measurement"] == "draws"]
    figure = new_figure("Draws until the norm is below the threshold")
    truths = rows["truth"].sort_values().unique()
    add_line(figure, truths, truths, "as predicted", DASHED)
    _add_dimensions(figure, rows, "measured, d = {:,}", OKABE_ITO)
    twos = {"type": "log", "tickvals": [2**k for k in range(12)]}
    figure.update_xaxes(title_text="predicted draws ⌈n*⌉", rangemode="normal", **twos)
    return figure.update_yaxes(title_text="mean draws per step [microbatches]", **twos)


def draws_against_threshold(measured: pd.DataFrame) -> go.Figure:
    """Plot mean draws of GNTS, of `measure_reach`, and where the threshold is unreachable."""
    needs = [*POINT, "threshold", "is_flagged"]
    check_columns("draws_against_threshold", measured, needs)
    rows = measured[measured["measurement"] == "reach"].sort_values("threshold")
    figure = new_figure("A threshold below |G| is out of reach")
    predicted = rows.drop_duplicates("threshold")
    name = "predicted: ⌈n*⌉,<br>at most max_draws"
    add_line(figure, predicted["threshold"], predicted["truth"], name, DASHED)
    rows = rows.assign(truth=rows["threshold"])
    reached, flagged = rows[~rows["is_flagged"].astype(bool)], rows[rows["is_flagged"].astype(bool)]
    _add_dimensions(figure, reached, "d = {:,}: within reach", OKABE_ITO, dodge=1.01)
    name = "d = {:,}: “unreachable”"
    _add_dimensions(figure, flagged, name, OKABE_ITO, dodge=1.01, symbols=CROSSES)
    figure.add_vline(1, line=LEVEL)
    figure.update_xaxes(title_text="threshold / |G|", rangemode="normal")
    return figure.update_yaxes(title_text="mean draws per step [microbatches]", rangemode="tozero")


def noise_scale_against(history: pd.DataFrame, x: str = "tokens") -> go.Figure:
    """Plot the estimate of the noise scale of each method that has one, of its first seed."""
    figure = new_figure("Noise scale as the wrappers estimate it", showlegend=True)
    figure.update_xaxes(title_text=LABELS.get(x, x))
    decades = {"type": "log", "dtick": 1, "exponentformat": "power"}
    figure.update_yaxes(title_text="noise scale R [microbatches]", **decades)
    for method, style, records in each_method("noise_scale_against", history, [x, "noise_scale"]):
        rows = first_seed(records).query("noise_scale > 0")
        add_curve(figure, rows, x, "noise_scale", method, style | {"width": 1.5})
    return figure


def batch_estimates(results: pd.DataFrame, history: pd.DataFrame) -> go.Figure:
    """:func:`estimates_against_truth` of the means over a batch's seeds, with their intervals."""
    means = summarize(results, ["measurement", "dimension", "truth"], "measured")
    return estimates_against_truth(means.rename(columns={"mean": "measured"}))


def _add_dimensions(
    figure: go.Figure,
    rows: pd.DataFrame,
    name: str,
    colors: Sequence[str],
    symbols: Sequence[str] = SYMBOLS,
    dodge: float = 1.08,
    **where: Any,
) -> None:
    """Add a series per dimension: markers with bars from ``low`` to ``high``.

    ``dodge`` is the factor between neighbouring series in x, that their bars stay apart.
    """
    dimensions = sorted({*rows["dimension"]})
    for i, dimension in enumerate(dimensions):
        points = rows[rows["dimension"] == dimension].dropna(subset=["measured"])
        ends = {"mean": points["measured"], "low": points["low"]}
        bars = uneven_bars({**ends, "high": points["high"].clip(upper=UNBOUNDED)})
        marker = {"color": colors[i % len(colors)], "symbol": symbols[i % len(symbols)], "size": 8}
        shift = dodge ** (i - (len(dimensions) - 1) / 2)
        x, y, style = points["truth"] * shift, points["measured"], {"marker": marker, **where}
        add_points(figure, x, y, name.format(dimension), error_y=bars, **style)


def _log_range(rows: pd.DataFrame) -> list[float]:
    """Return the exponents of an axis that holds all finite values and bounds."""
    values = rows[["measured", "low", "high"]].to_numpy(dtype=float)
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return [-1.0, 1.0]
    low, high = math.log10(values.min()), math.log10(values.max())
    room = 0.05 + 0.05 * (high - low)
    return [round(low - room, 3), round(high + room, 3)]


def norm_by_draws(table: pd.DataFrame, signal: float) -> go.Figure:
    """Plot the threshold that means so many draws, and the norm expected of their mean.

    Args:
        table: rows with ``draws``, ``norm`` and ``expected``, as a probe gives them.
        signal: :math:`|G|`, below which no threshold can be reached.
    """
    check_columns("norm_by_draws", table, ["draws", "norm", "expected"])
    figure = new_figure("Threshold for a mean number of draws a step")
    shown = {"threshold": table["norm"], "expected norm": table["expected"]}
    shown |= {"|G|: out of reach below": table["norm"] * 0 + signal}
    for number, (name, values) in enumerate(shown.items()):
        add_line(figure, table["draws"], values, name, {"color": OKABE_ITO[number]})
    figure.update_xaxes(title_text=LABELS["num_draws"], type="log", tickvals=[*table["draws"]])
    return figure.update_yaxes(title_text="gradient norm", rangemode="tozero")
