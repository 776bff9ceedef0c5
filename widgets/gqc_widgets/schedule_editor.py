"""Editor of a norm schedule: its fields, the curve with what became of it, and what it costs."""

from __future__ import annotations

import html
import math
from typing import Any

import ipywidgets as widgets

from gqc_lab import Experiment
from gqc_lab.loop.live import Live
from gqc_lab.loop.norm_schedule import CURVES, SETTINGS
from gqc_widgets.editor import Editor, columns, note
from gqc_widgets.fields import Fields, say
from gqc_widgets.panels import Panels, schedule_panels
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


class NormScheduleEditor(Editor):
    """Edit the schedule of the norm threshold before a run and during it.

    A valid edit takes effect at the next microbatch; an invalid one shows what is wrong, and the
    run keeps the last valid schedule.  With the curve "points", a click into the figure adds a
    point, a click on a point removes it, and a drag moves it.  In a loop of your own, its schedule
    decides until the first edit here.

    Args:
        run: a `Live`, or an experiment.
    Attributes:
        fields: the input fields.
        model: what the figure shows.
    Raises: ValueError: the experiment has no norm schedule.
    """

    def __init__(self, run: Live | Experiment) -> None:
        super().__init__(run)
        self.model = NormScheduleModel(self.live)
        labels = {name: SETTINGS[name].axis for name in FIELDS}
        controls = self.experiment.controls
        self.fields = Fields(controls, labels, self._refresh, implied=self.model.implied)
        self.notes = widgets.HTML()
        has_most = self.model.max_draws is not None
        self.panels = Panels(schedule_panels(has_most), self._hear_click)
        left = [self.fields, self.button, self.text]
        self.children = [self.banner, columns(left, [self.panels, self.notes])]
        self.add_class("gqc-norm-schedule")
        self.live.listeners.append(self._hear)
        self._refresh()

    def export(self) -> dict[str, Any]:
        return self.model.export()

    def _hear_click(self, content: dict[str, Any]) -> None:
        """Put, move or take away a point of a schedule that is drawn by hand.

        Args:
            content: ``old``, the microbatch of a point that goes, and ``new``, [microbatch, norm]
                of one that comes; each may be missing.
        """
        model, total = self.model, self.model.total
        if model.schedule.norm_curve == "points":
            old, new = content.get("old"), content.get("new")
            come = None if new is None else (new[0] / total, float(f"{new[1]:.4g}"))
            points = model.points(None if old is None else old / total, come)
            self.fields.edit("norm_points", points)

    def _refresh(self) -> None:
        """Show the fields that the curve uses, and the figure after an edit."""
        with self._drawing:
            curve = self.fields.values["norm_curve"]["text"]
            self.fields.show([name for name, curves in FIELDS.items() if curve in curves])
            self._draw()
            self._refresh_export()

    def _follow(self) -> None:
        self.fields.follow()
        self._refresh()

    def _draw(self) -> None:
        model, points = self.model, self.live.curves.points
        steps, norms = model.curve()
        draws = model.expected_draws()
        gaps = [math.nan if n is None else n for n in draws or []]
        is_drawn = model.schedule.norm_curve == "points"
        by_hand = model.schedule.norm_points if is_drawn else ()
        curves: dict[str, tuple[Any, Any]] = {
            "schedule": (steps, norms),
            "expected": (steps if draws else [], gaps),
            "points": ([s * model.total for s, _ in by_hand], [y for _, y in by_hand]),
            "max_draws": (steps, [model.max_draws or math.nan] * len(steps)),
        }
        for name in ("gradient_norm_threshold", "grad_norm", "num_draws"):  # what became of it
            x, y = points(name)
            curves[name] = x * model.total / self.experiment.total, y
        self.panels.fill(curves)
        warning = model.warning()
        below = say(html.escape(warning), "warning") if warning else ""
        self.notes.value = note(" · ".join(model.notes()) + below)
