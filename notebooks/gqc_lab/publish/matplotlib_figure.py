"""Draw a plotly figure with matplotlib, for print.

It draws what the figures of results are made of: lines, markers, error bars and bands on linear and
logarithmic axes in a grid of panels, with levels and titles.  The figure's own title is left to the
caption.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import plotly.graph_objects as go

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTERS = {"x": 32, "y": 26}  #: of a line below or beside a panel
POINT = 0.5  #: points in print of a pixel on the screen
DASHES: dict[str, Any] = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
DASHES |= {"longdash": (0, (7, 2)), "longdashdot": (0, (7, 2, 1, 2))}
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X"}
MARKERS |= {"cross": "P", "star": "*", "asterisk": "*", "x-thin": "x", "cross-thin": "+"}


def draw(figure: go.Figure, size: Sequence[float]) -> Figure:
    """Draw ``figure`` with matplotlib, in that width and height [inch].

    Raises: ValueError: a kind of trace that is not drawn here.
    """
    from matplotlib import pyplot

    for trace in figure.data:
        if trace.type != "scatter":
            raise ValueError(f"a trace of type {trace.type!r}: expected scatter")
    printed = pyplot.figure(figsize=tuple(size), layout="constrained")
    panels = _panels(printed, figure)
    for trace in figure.data:
        _draw_scatter(panels[trace.xaxis or "x", trace.yaxis or "y"], trace)
    for shape in figure.layout.shapes:
        for (x, y), axes in panels.items():
            _draw_level(axes, shape, x, y)
    for (x, y), axes in panels.items():
        _set_axis(axes, "x", _axis(figure, x))
        _set_axis(axes, "y", _axis(figure, y))
    for note in figure.layout.annotations:
        _annotate(figure, panels, note)
    _add_legend(printed, list(panels.values()))
    return printed


def _axis(figure: go.Figure, name: str) -> Any:
    """Return an axis of the layout by a name such as "x2"."""
    return figure.layout[f"{name[0]}axis{name[1:]}"]


def _panels(printed: Figure, figure: go.Figure) -> dict[tuple[str, str], Axes]:
    """Make the axes of each panel, in the grid that the domains of plotly's axes define."""
    pairs = list(dict.fromkeys((t.xaxis or "x", t.yaxis or "y") for t in figure.data))
    domains = {
        name: tuple(_axis(figure, name).domain or (0.0, 1.0)) for pair in pairs for name in pair
    }
    columns = sorted({domains[x] for x, _ in pairs})
    rows = sorted({domains[y] for _, y in pairs}, reverse=True)
    widths, heights = ([high - low for low, high in side] for side in (columns, rows))
    grid = printed.add_gridspec(len(rows), len(columns), width_ratios=widths, height_ratios=heights)
    panels: dict[tuple[str, str], Axes] = {}
    first: dict[str, Axes] = {}
    for x, y in sorted(pairs, key=lambda pair: (-domains[pair[1]][0], domains[pair[0]][0])):
        leads = [_axis(figure, name).matches or name for name in (x, y)]
        place = grid[rows.index(domains[y]), columns.index(domains[x])]
        axes = printed.add_subplot(place, sharex=first.get(leads[0]), sharey=first.get(leads[1]))
        panels[x, y] = axes
        for lead in leads:
            first.setdefault(lead, axes)
    return panels


def _numbers(values: Any) -> list[Any]:
    return [math.nan if value is None else value for value in (() if values is None else values)]


def _text(text: str | None) -> str:
    return re.sub(r"</?\w+>", "", (text or "").replace("<br>", "\n")).replace("$", r"\$")


def _label(trace: Any) -> str | None:
    return None if trace.showlegend is False or not trace.name else _text(trace.name)


def _color(color: str) -> Any:
    """Convert plotly's rgba(0,114,178,0.18) for matplotlib."""
    if match := re.fullmatch(r"rgba?\((.*)\)", color):
        parts = [float(part) for part in match[1].split(",")]
        return (*(part / 255 for part in parts[:3]), *parts[3:])
    return color


def _draw_scatter(axes: Axes, trace: Any) -> None:
    x, y = _numbers(trace.x), _numbers(trace.y)
    mode = trace.mode or "lines+markers"
    color = trace.line.color or trace.marker.color
    if trace.fill == "toself":
        axes.fill(x, y, facecolor=_color(trace.fillcolor), linewidth=0)
        return
    style: dict[str, Any] = {"color": color, "linestyle": "none", "label": _label(trace)}
    if "lines" in mode:
        width = POINT * (trace.line.width or 2)
        style |= {"linestyle": DASHES[trace.line.dash or "solid"], "linewidth": width}
    if "markers" in mode:
        marker = trace.marker
        name = marker.symbol or "circle"
        style |= {"marker": MARKERS[name.removesuffix("-open")]}
        style |= {"markersize": POINT * (marker.size or 6), "alpha": marker.opacity}
        style |= {"markerfacecolor": "none"} if name.endswith("-open") else {}
    for side in ("x", "y"):
        bars = trace[f"error_{side}"]
        if bars.array is not None:
            up = np.array(_numbers(bars.array), dtype=float)
            down = up if bars.arrayminus is None else np.array(_numbers(bars.arrayminus), float)
            style |= {f"{side}err": np.abs([down, up]), "elinewidth": 0.8, "capsize": 0}
    axes.errorbar(x, y, **style)


def _draw_level(axes: Axes, shape: Any, x: str, y: str) -> None:
    """Draw a line across a panel, if the shape belongs to it."""
    line = {"color": shape.line.color, "linewidth": POINT * (shape.line.width or 2), "zorder": 1}
    line |= {"linestyle": DASHES[shape.line.dash or "solid"]}
    if (shape.xref, shape.yref) in ((f"{x} domain", y), ("paper", y)):
        axes.axhline(shape.y0, **line)
    elif (shape.xref, shape.yref) in ((x, f"{y} domain"), (x, "paper")):
        axes.axvline(shape.x0, **line)


def _set_axis(axes: Axes, side: Literal["x", "y"], axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    inherited = go.Layout(template=axis.figure.layout.template).template.layout[f"{side}axis"]
    place = axes.xaxis if side == "x" else axes.yaxis
    set_limits = axes.set_xlim if side == "x" else axes.set_ylim
    is_log, is_binary = axis.type == "log", str(axis.dtick).startswith("0.3010")
    if is_log:
        axes.set(**{f"{side}scale": "log"})
    if axis.range is not None:
        set_limits(*(10.0 ** np.array(axis.range) if is_log else axis.range))
    elif not is_log and (axis.rangemode or inherited.rangemode) == "tozero":
        set_limits(min(0.0, *set_limits()), max(0.0, *set_limits()))
    if axis.tickvals is not None:
        low, high = sorted(set_limits())
        texts = axis.ticktext or [_tick(value, axis.tickformat) for value in axis.tickvals]
        shown = [
            (value, _text(text))
            for value, text in zip(axis.tickvals, texts, strict=True)
            if low <= value <= high
        ]
        if side == "x" and sum(len(text) + 2 for _, text in shown) > LETTERS["x"]:
            shown = shown[::2]
        place.set_ticks([value for value, _ in shown], [text for _, text in shown])
        place.set_minor_locator(NullLocator())
    elif is_log and (axis.tickformat or is_binary):
        twos = {"base": 2.0} if is_binary else {"subs": (1.0, 2.0, 5.0)}
        place.set_major_locator(LogLocator(**twos))
        place.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, axis.tickformat)))
        place.set_minor_locator(NullLocator())
    elif axis.nticks:
        place.set_major_locator(MaxNLocator(axis.nticks - 1, steps=[1, 2, 5, 10]))
    elif not is_log and max(map(abs, set_limits())) >= 1e5:
        place.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, "~s")))
    if axis.title.text:
        lines = (fill(line, LETTERS[side]) for line in _text(axis.title.text).split("\n"))
        place.set_label_text("\n".join(lines))
    if axis.showticklabels is False:
        axes.tick_params(side, labelbottom=False, labelleft=False)
    if axis.showgrid is False:
        place.grid(visible=False)


def _tick(value: float, form: str | None) -> str:
    if form and form.endswith("e"):
        return f"$10^{{{round(math.log10(value))}}}$"
    if form and form.endswith("s"):
        for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:g}{letter}"
    return f"{value:g}"


def _annotate(figure: go.Figure, panels: Mapping[tuple[str, str], Axes], note: Any) -> None:
    """Write the title of a panel, or the text of a level."""
    for (x, y), axes in panels.items():
        if note.xref == "paper" and note.yref == "paper":
            left, right = _axis(figure, x).domain or (0.0, 1.0)
            _, top = _axis(figure, y).domain or (0.0, 1.0)
            if left <= note.x <= right and abs(note.y - top) < 0.02:
                axes.set_title(_text(note.text))
        elif note.yref == y and note.xref in (f"{x} domain", "paper"):
            axes.annotate(
                _text(note.text),
                (0.98 if note.x else 0.02, note.y),
                xycoords=axes.get_yaxis_transform(),
                ha="right" if note.x else "left",
                va=note.yanchor or "bottom",
                size=7,
            )


def _add_legend(printed: Figure, panels: Sequence[Axes]) -> None:
    """Add one legend for all panels, below them; none for a single entry."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if len(found) > 1:
        widest = max(len(line) for label in found for line in label.split("\n"))
        columns = max(1, min(len(found), int(printed.get_figwidth() * 19 / (widest + 5))))
        printed.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns)
