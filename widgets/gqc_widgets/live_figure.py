"""A plotly figure in the browser whose curves grow; each message carries its whole state.

Why not plotly's ``FigureWidget``: each instance makes the browser compile plotly's 5 MB again, and
anywidget permanently gives up on a widget that takes more than 2 s for that, so on a busy machine
some figures of a page stay blank.  Here the page compiles plotly once, in the background, and a
view that is opened late, or again after a reload, finds the whole state.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import anywidget
import numpy as np
import plotly.graph_objects as go
import traitlets
from plotly.offline import get_plotlyjs

from gqc_widgets.curves import XY

Click = Callable[[float, float], None]

_HIDDEN = ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d"]  # buttons over the figure
_CONFIG = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": _HIDDEN}

_SCRIPT = """
// Wrapped, so that it does not take a page's require.js for its own.
const load = model => globalThis.gqcPlotly ??= (async () => {
  const before = "const module = {exports: {}}; let exports = module.exports, define;";
  const parts = [before, model.get("_plotly"), ";export default module.exports;"];
  const url = URL.createObjectURL(new Blob(parts, {type: "text/javascript"}));
  try { return (await import(url)).default; } finally { URL.revokeObjectURL(url); }
})();

const numbers = view =>
  new Float64Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

function update(model, data) {
  const {points, notes} = model.get("_shown"), places = [], x = [], y = [];
  data.forEach((trace, place) => {
    if (!(trace.meta in points)) return;
    places.push(place);
    x.push(numbers(points[trace.meta].x));
    y.push(numbers(points[trace.meta].y));
  });
  const visible = notes.map((is, i) => [`annotations[${i}].visible`, is]);
  return [{x, y}, Object.fromEntries(visible), places];
}

async function render({model, el}) {
  const Plotly = await load(model);
  const {data, layout} = structuredClone(model.get("_figure"));
  await Plotly.newPlot(el, data, layout, model.get("_config"));
  const draw = () => Plotly.update(el, ...update(model, data));
  const [{x}] = update(model, data);
  if (x.length) await draw();
  model.on("change:_shown", draw);
  el.on("plotly_click", event => model.send(
    {clicks: event.points.map(p => [p.data.meta ?? null, p.x, p.y])}));
  return () => { model.off("change:_shown", draw); Plotly.purge(el); };
}
export default { render };
"""


class LiveFigure(anywidget.AnyWidget):
    """Show ``figure`` as a widget, as wide as its place on the page.

    Args:
        figure: what to show; the ``meta`` of a curve is its name.
        curves: as in `fill`.
    Attributes:
        plot: the figure as it is now.
    """

    _esm = _SCRIPT
    _plotly = traitlets.Bytes().tag(sync=True)
    _figure = traitlets.Dict().tag(sync=True)
    _config = traitlets.Dict().tag(sync=True)
    _shown = traitlets.Dict().tag(sync=True)

    def __init__(self, figure: go.Figure, curves: Mapping[str, XY] | None = None) -> None:
        self.plot = figure
        self._clicks: dict[str, Click] = {}
        fixed = {"_plotly": _plotly(), "_config": _CONFIG}
        whole = json.loads(figure.to_json())
        super().__init__(**fixed, _figure=whole, _shown=self._fill(curves or {}))
        self.on_msg(self._clicked)

    def fill(self, curves: Mapping[str, XY]) -> None:
        """Set the points of these curves, in one message; the others keep theirs.

        An annotation with the name of a curve is visible while that curve has no points.
        """
        shown = self._fill(curves)
        kept = {**self._shown["points"], **shown["points"]}
        self._shown = {"points": kept, "notes": shown["notes"]}

    def _fill(self, curves: Mapping[str, XY]) -> dict[str, Any]:
        points = {}
        for trace in self.plot.data:
            if trace.meta in curves:
                x, y = (np.asarray(values, dtype=float) for values in curves[trace.meta])
                trace.x, trace.y = x, y
                points[trace.meta] = {"x": x.tobytes(), "y": y.tobytes()}
        for note in self.plot.layout.annotations:
            if note.name in curves:
                note.visible = len(curves[note.name][0]) == 0
        notes = [note.visible is not False for note in self.plot.layout.annotations]
        return {"points": points, "notes": notes}

    def on_click(self, name: str, act: Click) -> None:
        """Call ``act`` with x and y when a point of the curve ``name`` is clicked."""
        self._clicks[name] = act

    def _clicked(self, _: Any, content: Mapping[str, Any], buffers: Any) -> None:
        for name, x, y in content.get("clicks", ()):
            if name in self._clicks:
                self._clicks[name](float(x), float(y))


@functools.cache
def _plotly() -> bytes:
    return get_plotlyjs().encode()
