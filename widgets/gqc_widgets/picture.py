"""A picture of panels as PNG, for where no widget is shown: on GitHub, in a converted file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gqc_widgets.panels import TEXT, Panel

_DASHES = {"dash": "--", "dot": ":", "dashdot": "-."}


def draw(
    panels: Sequence[Panel], curves: Mapping[str, tuple[Any, Any]], title: str
) -> bytes | None:
    """Return the panels that have points as a PNG; None: there are none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [p for p in panels if any(len(curves.get(t["meta"], [()])[0]) for t in p["traces"])]
    if not drawn:
        return None
    rows = -(-len(drawn) // 2)
    figure = Figure(figsize=(10, 0.3 + 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
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
