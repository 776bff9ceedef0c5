"""Panels of curves that grow, in the browser: what is drawn, where, and in which colours.

Why not plotly's ``FigureWidget``: each instance makes the browser compile plotly's 5 MB again.
Here plotly comes once a kernel, in a model of its own, and each message carries the whole of the
thinned curves, so that a view that is opened late, or again after a reload, finds them.  Where no
widget is shown, on GitHub and in a converted file, there is a picture by `draw`.
"""

import functools
import io
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import plotly.graph_objects as go
import traitlets
from ipywidgets import Widget, widget_serialization
from plotly.offline import get_plotlyjs

from gqc_lab.figures import DASHES, LABELS, OKABE_ITO

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, _ = OKABE_ITO
TEXT = "text"  #: the colour of the page's text, in its theme
COLORS = (*OKABE_ITO[:6], TEXT, "#999933", "#AA4499", "#8C8C8C")  #: of methods side by side
Panel = dict[str, Any]
Trace = dict[str, Any]
_HERE = Path(__file__).parent
_DASHES = {"dash": "--", "dot": ":", "dashdot": "-."}  #: plotly's in matplotlib
#: recorded numbers without a panel: they are x axes, or shown next to others
_AXES = ("microbatch", "seconds", "tokens", "examples", "steps")


def line(
    key: str, name: str, color: str, width: float = 2, dash: str = "solid", **more: Any
) -> Trace:
    """Return an empty line that `Panels.fill` knows as ``key``."""
    style = {"color": color, "width": width, "dash": dash}
    return {"meta": key, "name": name, "mode": "lines", "line": style, **more}


def dots(
    key: str, name: str, color: str, symbol: str = "circle", size: int = 6, **more: Any
) -> Trace:
    """Return empty markers that `Panels.fill` knows as ``key``."""
    marker = {"color": color, "symbol": symbol, "size": size}
    return {"meta": key, "name": name, "mode": "markers", "marker": marker, **more}


def panel(title: str, *traces: Trace, x: str = "", unit: str = "", **more: Any) -> Panel:
    """Return a pair of axes.

    Args:
        title: what y is, with its unit.
        x: a key of the records, or the label of the x axis.
        unit: of y, for what is hovered over.
        more: ``log``, ``linear`` (never log), ``range`` and ``logs`` (of y), ``note`` (shown while
            all is empty), ``height``, ``editable`` (points are put and dragged).
    """
    spec = {"title": title, "traces": list(traces), "x": LABELS.get(x, x)}
    return {**PLAIN, **spec, "unit": f" {unit}" if unit else "", **more}


PLAIN: Panel = {"log": False, "linear": False, "range": None, "logs": {}, "note": ""}
PLAIN |= {"height": 220, "editable": False}
DRAWS = dots("num_draws", "draws", GREEN, opacity=0.5)
VARIANCES = (
    line("vgs/stochastic_var_p90", "p90", SKY, 1.5),
    line("vgs/stochastic_var_p50", "p50 of tensors", GREEN, 1.5),
    line("vgs/stochastic_var_p10", "p10", ORANGE, 1.5),
    line("vgs/normalized_variance", "V", PURPLE, 2.5),
)
FACTOR: dict[str, Any] = {"range": [0, 1.05], "linear": True}


def run_panels(
    fields: Collection[str], unit: str, loss_unit: str = "", max_draws: int | None = None,
    has_others: bool = False,
) -> list[Panel]:  # fmt: skip
    """Return the panels of a run that records ``fields``.

    Args:
        unit: of x, a key of the records.
        loss_unit: of the loss, or empty.
        max_draws: of a step, or None.
        has_others: do numbers without a panel of their own get one, too?
    """
    most: dict[str, Any] = (
        {} if max_draws is None else {"range": [math.log10(0.8), math.log10(2 * max_draws)]}
    )
    validation = line("val_loss", "held-out", VERMILION) | {"mode": "lines+markers"}
    norms = (
        line("grad_norm", "at a step", SKY, 1),
        dots("forced", "forced step", VERMILION, "x"),
        line("gradient_norm_threshold", "threshold", TEXT, 2.5),
    )
    known = {
        "loss": panel(_of_loss(loss_unit), *_smoothed("loss"), validation,
                      unit=loss_unit, x=unit),
        "grad_norm": panel("norm of mean gradient", *norms, x=unit, log=True,
                           note="no step has read a norm"),
        "num_draws": panel("draws per step", DRAWS, x=unit, log=True, logs=most),
        "noise_scale": panel("noise / signal", line("noise_scale", "noise scale", PURPLE), x=unit,
                             log=True, note="not known: no step has taken two draws", unit="draws"),
        "vgs/normalized_variance": panel("variance / signal", *VARIANCES, x=unit, log=True,
                                         note="not measured yet"),
        "factor": panel("factor on the gradient", line("factor", "factor", VERMILION, 2.5), x=unit,
                        **FACTOR),
    }  # fmt: skip
    found = [each for needed, each in known.items() if needed in fields]
    if has_others:
        drawn = names_in(found)
        rest = [f for f in fields if f not in drawn and f not in _AXES and not f.startswith("vgs/")]
        together = [f for f in rest if f.startswith("val_") and f[4:] in rest]
        for name in (f for f in rest if f not in together):
            traces = (line(name, "applied", BLUE, 2.5),) if name == "lr" else _smoothed(name)
            if f"val_{name}" in together:
                traces += (line(f"val_{name}", "held-out", VERMILION),)
            found.append(panel(LABELS.get(name, name), *traces, x=unit, note="nothing logged yet"))
    return found


def names_in(panels: Sequence[Panel]) -> set[str]:
    """Return the curves that ``panels`` have."""
    return {trace["meta"] for each in panels for trace in each["traces"]}


def _of_loss(unit: str) -> str:
    return f"loss [{unit}]" if unit else "loss"


def _smoothed(key: str) -> tuple[Trace, ...]:
    return line(key, "batch", BLUE, 1, opacity=0.5), line(f"smooth {key}", "smoothed", BLUE, 2.5)


def schedule_panels(has_most: bool) -> list[Panel]:
    """Return a norm schedule with what became of it, and its draws, against microbatches."""
    most = [line("max_draws", "max_draws", VERMILION, dash="dash")] if has_most else []
    along: dict[str, Any] = {"x": "microbatch", "log": True}
    norms = (
        line("grad_norm", "norm at a step", SKY, 1),
        line("gradient_norm_threshold", "applied", VERMILION, 2.5),
        line("schedule", "schedule", TEXT, 2, "dash"),
        dots("points", "points", TEXT, size=10),
    )
    expected = line("expected", "expected", PURPLE, 2.5)
    return [
        panel("norm threshold", *norms, height=300, editable=True, **along),
        panel("draws per step", DRAWS, expected, *most, **along),
    ]


def scaler_panels(x: str) -> list[Panel]:
    """Return V over tensors with its cap, and the factor next to what single percentiles give."""
    laws = {"p10": ORANGE, "p50": GREEN, "p90": SKY}
    singles = [line(f"at {p}", f"law at {p}", color, 1.5, "dot") for p, color in laws.items()]
    cap = line("cap", "cap", TEXT, 1.5, "dot")
    return [
        panel("variance / signal", *VARIANCES, cap, x=x, log=True, note="not measured yet"),
        panel("factor", line("factor", "applied", VERMILION, 2.5), *singles, x=x, **FACTOR),
    ]


def what_if_panels(x: str) -> list[Panel]:
    """Return the factor as it was recorded, and with other settings."""
    recorded = line("recorded", "recorded", VERMILION, 2.5)
    return [panel("factor", recorded, line("what_if", "what if", TEXT, 2, "dash"), x=x, **FACTOR)]


def side_panels(x: str, loss_unit: str, alphas: Sequence[float]) -> list[Panel]:
    """Return the losses and the factors of runs side by side, by their place in ``alphas``."""
    losses, factors = [], []
    for i, alpha in enumerate(alphas):
        color, dash = COLORS[i % len(COLORS)], DASHES[i % 3]
        losses.append(line(f"smooth loss {i}", "", color, 1, dash, opacity=0.5))
        losses.append(line(f"val_loss {i}", f"alpha {alpha:g}", color, 2.5, dash))
        factors.append(line(f"factor {i}", "", color, 2, dash))
    return [
        panel(_of_loss(loss_unit), *losses, x=x, unit=loss_unit, height=280),
        panel("factor", *factors, x=x, height=280, **FACTOR),
    ]


def figure_panel(figure: go.Figure, title: str, x: str) -> Panel:
    """Return the curves of a whole plotly figure as a panel, each group in a colour of its own."""
    traces: list[Trace] = figure.to_plotly_json()["data"]
    groups = list(dict.fromkeys(trace.get("legendgroup") or trace["name"] for trace in traces))
    for number, trace in enumerate(traces):
        place = groups.index(trace.get("legendgroup") or trace["name"])
        color = COLORS[place % len(COLORS)]
        trace |= {"meta": number, "line": {**trace.get("line", {}), "color": color}}
        if trace.get("fill"):
            shade = "#808080" if color == TEXT else color
            trace |= {"fillcolor": f"{shade}2e", "name": "", "hoverinfo": "skip"}
            trace["hovertemplate"] = None
    return panel(title, *traces, x=x, height=420)


class _Library(anywidget.AnyWidget):
    """plotly.js, once a kernel."""

    _esm = "export default {};"
    code = traitlets.Bytes().tag(sync=True)


@functools.cache
def _library() -> _Library:
    return _Library(code=get_plotlyjs().encode())


class Panels(anywidget.AnyWidget):
    """Show `panel` s in a grid that wraps, as wide as their place on the page."""

    _esm = _HERE / "panels.js"
    _css = _HERE / "style.css"
    _lib = traitlets.Instance(Widget).tag(sync=True, **widget_serialization)
    panels: Any = traitlets.List().tag(sync=True)
    points = traitlets.Dict().tag(sync=True)

    def __init__(
        self, panels: Sequence[Panel], heard: Callable[[dict[str, Any]], None] | None = None
    ):
        super().__init__(_lib=_library(), panels=list(panels))
        if heard is not None:
            self.on_msg(lambda _, content, buffers: heard(content))

    def fill(self, curves: Mapping[str, tuple[Any, Any]]) -> None:
        """Set the points of these curves, in one message; the others keep theirs."""
        names = names_in(self.panels)
        new = {
            name: {"x": _bytes(x), "y": _bytes(y)}
            for name, (x, y) in curves.items()
            if name in names
        }
        self.points = {**self.points, **new}


def _bytes(values: Any) -> bytes:
    return np.asarray(values, dtype=float).tobytes()


def draw(
    panels: Sequence[Panel], curves: Mapping[str, tuple[Any, Any]], title: str
) -> bytes | None:
    """Return the panels that have points as a PNG; None: there are none."""
    from matplotlib.figure import Figure

    drawn = [p for p in panels if any(len(curves.get(t["meta"], [()])[0]) for t in p["traces"])]
    if not drawn:
        return None
    rows = -(-len(drawn) // 2)
    figure = Figure(figsize=(10, 0.3 + 2.4 * rows), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for number, spec in enumerate(drawn, 1):
        axes = figure.add_subplot(rows, min(2, len(drawn)), number)
        for trace in spec["traces"]:
            x, y = (np.asarray(v, dtype=float) for v in curves.get(trace["meta"], ((), ())))
            if len(x):
                axes.plot(x, y, label=trace["name"], **_style(trace))
        axes.set_title(spec["title"], fontsize=9, loc="left")
        axes.set_xlabel(spec["x"], fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_yscale("log" if spec["log"] else "linear")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7, loc="best", frameon=False)
    file = io.BytesIO()
    figure.savefig(file, dpi=80, metadata={"Software": None})
    return file.getvalue()


def _style(trace: Mapping[str, Any]) -> dict[str, Any]:
    look = trace.get("line") or trace["marker"]
    color = "black" if look["color"] == TEXT else look["color"]
    style = {"alpha": trace.get("opacity", 1.0), "color": color}
    if "line" not in trace:
        return style | {"ls": "", "marker": "x" if look["symbol"] == "x" else ".", "ms": 4}
    return style | {"lw": 0.6 * look["width"], "ls": _DASHES.get(look["dash"], "-")}
