"""Editor of a norm schedule: its fields, the curve with what became of it, and what it costs."""

from __future__ import annotations

import html
import math
from typing import Any

import ipywidgets as widgets

from gqc_lab import Experiment
from gqc_lab.loop.norm_schedule import CURVES, SETTINGS
from gqc_widgets.curves import XY
from gqc_widgets.editor import Editor, columns, note
from gqc_widgets.fields import Fields, say
from gqc_widgets.live_figure import LiveFigure
from gqc_widgets.live_run import LiveRun
from gqc_widgets.panels import schedule_figure
from gqc_widgets.runner import Runner
from gqc_widgets.schedule import NormScheduleModel

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
    point, and a click on a point removes it.

    Args:
        run: a `LiveRun`, which is then followed while it trains, or an experiment.
    Attributes:
        fields: the input fields.
        model: what the figure shows.
    Raises: ValueError: the experiment has no norm schedule.
    """

    def __init__(self, run: LiveRun | Experiment) -> None:
        super().__init__(run)
        optimizer = self.experiment.parts.get("optimizer")
        self.model = NormScheduleModel(self.experiment, getattr(optimizer, "max_draws", None))
        labels = {name: SETTINGS[name].axis for name in FIELDS}
        controls = self.experiment.controls
        self.fields = Fields(controls, labels, self._refresh, implied=self.model.implied)
        self.notes = widgets.HTML()
        self.figure = LiveFigure(schedule_figure(self.model.total, self.model.max_draws))
        self.figure.on_click("clicks", self._put)
        self.figure.on_click("points", self._remove)
        left = [self.fields, self.button, self.text]
        self.children = [columns(left, [self.figure, self.notes])]
        self.add_class("gqc-norm-schedule")
        if self._runner is not None:
            self._runner.listeners.append(self._follow)
        self._refresh()

    def export(self) -> dict[str, Any]:
        return self.model.export()

    def _put(self, step: float, norm: float) -> None:
        self.fields.edit("norm_points", self.model.with_point(step / self.model.total, norm))

    def _remove(self, step: float, norm: float) -> None:
        self.fields.edit("norm_points", self.model.without_point(step / self.model.total))

    def _refresh(self) -> None:
        """Show the fields that the curve uses, and the figure after an edit."""
        with self._drawing:
            curve = self.fields.inputs["norm_curve"].value
            self.fields.show([name for name, curves in FIELDS.items() if curve in curves])
            self.figure.fill({"clicks": self.model.raster() if curve == "points" else _NONE})
            self._draw()

    def _follow(self, runner: Runner) -> None:
        with self._drawing:
            if self.fields.follow():
                self._refresh()
            else:
                self._draw()

    def _draw(self) -> None:
        model = self.model
        statistics = self._runner.statistics if self._runner is not None else {}
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
        self.figure.fill(curves)
        self.notes.value = self._notes(statistics)

    def _past(self) -> dict[str, XY]:
        """What was applied and what became of it, against microbatches."""
        if self._runner is None:
            return {}
        found = {}
        for name in ("gradient_norm_threshold", "grad_norm", "num_draws"):
            x, y = self._runner.curves.points(name)
            found[name] = [value * self.model.total / self.experiment.total for value in x], y
        return found

    def _notes(self, statistics: dict[str, Any]) -> str:
        model, notes = self.model, []
        expected = model.expected_draws_now(statistics)
        if expected is not None:
            notes.append(f"expected draws now: <b>{expected}</b>")
        elif self._runner is not None:
            notes.append("expected draws: not known before a step takes two draws")
        share = model.forced_share(statistics)
        if share is not None:
            notes.append(f"steps forced by max_draws: <b>{share:.1%}</b>")
        warning = model.warning(statistics)
        below = say(html.escape(warning), "warning") if warning else ""
        return note(" · ".join(notes) + below)
