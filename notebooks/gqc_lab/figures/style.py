"""The house style of interactive figures, and helpers that keep their data small and stable.

Colours: Okabe & Ito 2008, "Color universal design", told apart with any colour vision.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from gqc_lab.loop.settings import settings_of
from gqc_lab.stats.analysis import ONE_RUN, check_columns, outline
from gqc_lab.studies.pretraining.settings import PretrainingConfig

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BLACK = OKABE_ITO[-1]
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # legible in grey
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
LEVEL = {"color": "#444444", "width": 1, "dash": "dot"}  #: a value that means something
LOG_TICKS = [float(f"{m}e{k}") for k in range(-8, 9) for m in (1, 2, 5)]
#: of a figure with two or three rows of legend between title and axes
LEGEND_ABOVE = {
    "legend": {"orientation": "h", "y": 1.0, "yref": "paper", "yanchor": "bottom", "x": 0},
    "title": {"y": 0.98, "yref": "container", "yanchor": "top", "pad_t": 14},
    "margin_t": 140,
}


#: methods that are drawn together, and their places; those of two studies never are
FAMILIES: tuple[dict[str, int], ...] = (
    {"gnts": 0, "adamw": 1, "gns": 2, "normtest": 3, "mht": 4, "sbc": 5, "gnr": 6},
    {"gnts": 0, "control": 1},
    {"sgd": 0, "adamw": 1, "shrink_perturb": 2, "upgd": 3},
)
#: method -> its place in `OKABE_ITO` and `DASHES`, in every figure, whatever else it shows
PLACES = {name: place for family in FAMILIES for name, place in family.items()}
WIDTH = 2.5  #: of a method's line
#: drawn over the method whose draws it repeats, which is to be seen beneath it
REPLAY = {"color": "#999999", "dash": "dash", "width": 1.5}

#: column of a history or of results -> axis label; settings of pretraining have theirs in the table
LABELS = {
    **{name: each.axis for name, each in settings_of(PretrainingConfig).items() if each.label},
    "steps": "optimizer steps",
    "microbatch": "microbatches",
    "seconds": "training time [s]",
    "loss": "training loss [nat/token]",
    "val_loss": "held-out loss [nat/token]",
    "grad_norm": "norm of the mean gradient",
    "num_draws": "draws per step [microbatches]",
}

MAX_POINTS = 600  #: of a line, after thinning

_AXIS = {
    "gridcolor": "#e5e5e5",
    "linecolor": "#444444",
    "showline": True,
    "ticks": "outside",
    "tickcolor": "#444444",
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 12},
}

HOUSE = go.layout.Template(
    layout={
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 14, "color": "#222222"},
        "colorway": OKABE_ITO,
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        "height": 420,
        "margin": {"l": 70, "r": 20, "t": 60, "b": 60},
        "title": {"x": 0, "xref": "paper", "font": {"size": 17}},
        "hovermode": "x unified",
        "xaxis": _AXIS | {"rangemode": "tozero"},
        "yaxis": _AXIS,
    }
)  #: passed to every figure; the user's own default template is left alone


def thin(rows: pd.DataFrame, y: str, limit: int = MAX_POINTS) -> pd.DataFrame:
    """Keep at most ``limit`` rows, with the peaks of ``y`` (`stats.analysis.outline`)."""
    return rows.iloc[outline(rows[y].to_numpy(dtype=float), limit)]


def mean_curve(runs: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Return the mean over seeds where ``y`` is evaluated; never that of the runs that are left.

    A gap where a run has none of the others' values; the curve ends with the first that ends.
    """
    known = runs[x].where(runs[y].notna())
    end = known.groupby(runs["seed"]).max().min(skipna=False)
    values = runs[runs[x].isin(known) & (runs[x] <= end)].groupby(x)[y]
    return values.mean().where(values.count() == values.size()).reset_index()


def write_html(figure: go.Figure, path: str | Path) -> Path:
    """Write ``figure`` as one page that opens offline (it carries plotly.js, 5 MB)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    figure.write_html(part, include_plotlyjs=True, include_mathjax=False, div_id="figure")
    return part.replace(path)


def method_styles(names: Iterable[str], **own: Any) -> dict[str, dict[str, Any]]:
    """Return the colour, dash and width of each method's line.

    A method of `PLACES` has its own everywhere; the others have what colours are left, in order of
    appearance.  ``own``: of this figure instead, such as ``width``.
    """
    names = list(dict.fromkeys(names))
    places = {name: (PLACES[name], PLACES[name]) for name in names if name in PLACES}
    taken = {color for color, _ in places.values()}
    free = [i for i in range(len(OKABE_ITO)) if i not in taken]
    others = [name for name in names if name not in PLACES and name != "replay"]
    for i, name in enumerate(others):
        turn, number = divmod(i, len(free) or len(OKABE_ITO))
        # Beside a whole family another method shares a colour, but not its dash.
        places[name] = (free[number], number + turn) if free else (number, number + turn + 1)
    styles = {
        name: {"color": OKABE_ITO[color], "dash": DASHES[dash % len(DASHES)], "width": WIDTH}
        for name, (color, dash) in places.items()
    }
    styles["replay"] = REPLAY
    return {name: styles[name] | own for name in names}


def dashes_on_top(figure: go.Figure) -> go.Figure:
    """Draw solid lines below dashed ones, which they would hide where the two agree.

    The legend keeps its order.  Plotly's ``zorder`` would take their lines from some axes.
    """
    for rank, trace in enumerate(figure.data):
        trace.legendrank = rank + 1
    figure.data = sorted(figure.data, key=lambda trace: trace.line.dash not in (None, "solid"))
    return figure


def over_seeds(history: pd.DataFrame) -> str:
    """Say for a title what a curve is: "one seed" or "mean over 5 seeds"."""
    counts = history.groupby("method")["seed"].nunique()
    low, high = counts.min(), counts.max()
    if high <= 1:
        return "one seed"
    return f"mean over {high} seeds" if low == high else f"mean over {low} to {high} seeds"


def each_method(
    what: str, history: pd.DataFrame, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Yield each method's name, line style (see :func:`method_styles`) and records."""
    check_columns(what, history, ["method", "seed", *columns])
    for key, run in history.groupby(["method", "seed"], sort=False):
        if not run[columns[0]].dropna().is_monotonic_increasing:
            raise ValueError(f"{what}: {columns[0]} goes back within {key}: {ONE_RUN}")
    types = {c: bool if c == "stepped" else float for c in columns}
    styles = method_styles(history["method"].astype(str).unique())
    for method, records in history.groupby("method", sort=False):
        yield str(method), styles[str(method)], records.astype(types)


def first_seed(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records of the first seed."""
    return records[records["seed"] == records["seed"].iloc[0]]


def new_figure(title: str, /, **layout: Any) -> go.Figure:
    """Return an empty figure in the house style."""
    return go.Figure(layout={"template": HOUSE, "title_text": title, **layout})


def add_line(figure: go.Figure, x: Any, y: Any, name: str, style: Any, **more: Any) -> None:
    """Add a line of plain numbers; ``more`` says its panel and its place in the legend."""
    mode = "lines" if len(x) > 1 else "lines+markers"  # a line needs two points
    add_points(figure, x, y, name, **{"line": style, "mode": mode} | more)


def add_points(figure: go.Figure, x: Any, y: Any, name: str, **style: Any) -> None:
    """Add a trace of plain numbers, with markers unless ``style`` says otherwise.

    With ``is_shared`` the traces of this name, in several panels, share an entry of the legend.
    """
    style = {"mode": "markers", **style}
    if style.pop("is_shared", False):
        is_new = all(trace.name != name for trace in figure.data)
        style |= {"legendgroup": name, "showlegend": is_new}
    figure.add_scatter(x=plain_numbers(x), y=plain_numbers(y), name=name, **style)


def add_curve(
    figure: go.Figure, rows: pd.DataFrame, x: str, y: str, name: str, style: Any, **more: Any
) -> None:
    """Add the line of a column, thinned to ``limit`` points, unless it is empty.

    ``more``: as of :func:`add_line`.
    """
    rows = thin(rows, y, more.pop("limit", MAX_POINTS))
    if len(rows):
        add_line(figure, rows[x], rows[y], name, style, **more)


def nth_style(i: int, width: float = 2) -> dict[str, Any]:
    """Return the i-th colour and dash, for lines that are no methods."""
    return {"color": OKABE_ITO[i % 7], "dash": DASHES[i % 6], "width": width}


def new_panels(rows: int, columns: int, title: str, **options: Any) -> go.Figure:
    """Return a grid of panels in the house style; ``options``: of `make_subplots`."""
    figure = make_subplots(rows, columns, **options)
    return figure.update_layout(template=HOUSE, title_text=title)


def with_legend_above(figure: go.Figure, plot_height: int, legend_rows: int = 1) -> go.Figure:
    """Put the legend above the titles of panels, whatever the height of the figure [pixels]."""
    top = 90 + 22 * legend_rows
    figure.update_layout(**LEGEND_ABOVE, height=plot_height + top + 60)
    return figure.update_layout(margin_t=top, legend_y=1 + 26 / plot_height)


def uneven_bars(means: pd.DataFrame | Mapping[str, pd.Series]) -> dict[str, Any]:
    """Return error bars from ``low`` to ``high`` around ``mean``."""
    up, down = means["high"] - means["mean"], means["mean"] - means["low"]
    bars = {"type": "data", "symmetric": False, "thickness": 1.5, "width": 4}
    return bars | {"array": plain_numbers(up), "arrayminus": plain_numbers(down)}


def band(rows: pd.DataFrame, x: str, color: str) -> dict[str, Any]:
    """Return a trace of the area between the columns ``low`` and ``high``."""
    rows = rows.dropna(subset=["low", "high"])
    xs, ys = [*rows[x], *rows[x][::-1]], [*rows["high"], *rows["low"][::-1]]
    rgb = ",".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))
    area = {"fill": "toself", "fillcolor": f"rgba({rgb},0.18)", "line": {"width": 0}}
    values = {"x": plain_numbers(xs), "y": plain_numbers(ys), "mode": "lines"}
    return values | area | {"hoverinfo": "skip", "showlegend": False}


def plain_numbers(values: ArrayLike) -> list[float | int | None]:
    """Round to five significant digits, as plain numbers that any front end reads; NaN is a gap."""
    return [_plain(float(v)) for v in np.asarray(values)]


def _plain(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    value = float(f"{value:.5g}") if abs(value) < 1e5 else round(value)
    return int(value) if value == int(value) else value
