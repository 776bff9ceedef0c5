"""Editor of a norm schedule: its fields, the curve with what became of it, and what it costs."""

from __future__ import annotations

import html
import math
from typing import Any

import ipywidgets as widgets

from gqc_lab import Experiment
from gqc_lab.loop.live import Live
from gqc_lab.loop.norm_schedule import CURVES, SETTINGS
from gqc_lab.loop.own_loop import Loop
from gqc_widgets.editor import Editor, columns, note
from gqc_widgets.fields import Fields, say
from gqc_widgets.panels import Panels, schedule_panels
from gqc_widgets.schedule import XY, NormScheduleModel

#: field -> curves that use it
FIELDS = {
    "norm_curve": CURVES,
    "start_norm": CURVES[:4],
    "end_norm": CURVES[:3],
    "norm_warmup_microbatches": CURVES[:4],
    "norm_warmup_multiplier": CURVES[:4],
    "norm_exponent": ("polynomial",),
    "norm_points": ("points",),
}
_NONE: XY = ([], [])


class NormScheduleEditor(Editor):
    """Edit the schedule of the norm threshold before a run and during it.

    A valid edit takes effect at the next microbatch; an invalid one shows what is wrong, and the
    run keeps the last valid schedule.  With the curve "points", a click into the figure adds a
    point, a click on a point removes it, and a drag moves it.  In a loop of your own, its schedule
    decides until the first edit here.

    Args:
        run: a `Live`, which is then followed while it trains, or an experiment.
    Attributes:
        fields: the input fields.
        model: what the figure shows.
    Raises: ValueError: the experiment has no norm schedule.
    """

    def __init__(self, run: Live | Experiment) -> None:
        super().__init__(run)
        self.model = NormScheduleModel(self.experiment, _max_draws(self.experiment))
        labels = {name: SETTINGS[name].axis for name in FIELDS}
        controls = self.experiment.controls
        self.fields = Fields(controls, labels, self._refresh, implied=self.model.implied)
        self.notes = widgets.HTML()
        has_most = self.model.max_draws is not None
        self.panels = Panels(schedule_panels(self.model.total, has_most), self._hear_click)
        left = [self.fields, self.button, self.text]
        self.children = [self.banner, columns(left, [self.panels, self.notes])]
        self.add_class("gqc-norm-schedule")
        self.follow()
        self._refresh()

    def export(self) -> dict[str, Any]:
        return self.model.export()

    def _hear_click(self, content: dict[str, Any]) -> None:
        """Put, move or take away a point of a schedule that is drawn by hand."""
        model, total = self.model, self.model.total
        if model.schedule.norm_curve != "points":
            return
        if "put" in content:
            points = model.with_point(content["put"][0] / total, content["put"][1])
        elif "move" in content:
            start, end, norm = content["move"]
            points = model.moved_point(start / total, end / total, norm)
        else:
            points = model.without_point(content["remove"][0] / total)
        self.fields.edit("norm_points", [(share, float(f"{y:.4g}")) for share, y in points])

    def _refresh(self) -> None:
        """Show the fields that the curve uses, and the figure after an edit."""
        with self._drawing:
            curve = self.fields.values["norm_curve"]["text"]
            self.fields.show([name for name, curves in FIELDS.items() if curve in curves])
            self._draw()
            self._refresh_export()

    def _follow(self, live: Live) -> None:
        self.fields.follow()
        self._refresh()

    def _draw(self) -> None:
        model = self.model
        statistics = self.live.statistics if self.live is not None else {}
        steps, norms = model.curve()
        draws = model.expected_draws(statistics)
        gaps = [math.nan if n is None else n for n in draws or []]
        is_drawn = model.schedule.norm_curve == "points"
        points = model.schedule.norm_points if is_drawn else ()
        curves: dict[str, XY] = {
            "schedule": (steps, norms),
            "expected": (steps, gaps) if draws else _NONE,
            "points": ([s * model.total for s, _ in points], [y for _, y in points]),
            **self._past(),
        }
        if model.max_draws is not None:
            curves["max_draws"] = steps, [float(model.max_draws)] * len(steps)
        self.panels.fill(curves)
        self.notes.value = self._notes(statistics)

    def _past(self) -> dict[str, XY]:
        """What was applied and what became of it, against microbatches."""
        if self.live is None:
            return {}
        found, points = {}, self.live.curves.points
        scale = self.model.total / self.experiment.total
        for name in ("gradient_norm_threshold", "grad_norm", "num_draws"):
            x, y = points(name)
            found[name] = (x * scale).tolist(), y.tolist()
        return found

    def _notes(self, statistics: dict[str, Any]) -> str:
        model, notes = self.model, []
        expected = model.expected_draws_now(statistics)
        if expected is not None:
            notes.append(f"expected draws now: <b>{expected}</b>")
        elif self.live is not None:
            notes.append("expected draws: not known before a step takes two draws")
        share = model.forced_share(statistics)
        if share is not None:
            notes.append(f"steps forced by max_draws: <b>{share:.1%}</b>")
        warning = model.warning(statistics)
        below = say(html.escape(warning), "warning") if warning else ""
        return note(" · ".join(notes) + below)


def _max_draws(run: Experiment) -> int | None:
    optimizer = run.wrapper if isinstance(run, Loop) else run.parts.get("optimizer")
    return getattr(optimizer, "max_draws", None)
