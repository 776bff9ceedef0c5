"""The view of a norm schedule: fields, the plan with what became of it, and what it costs."""

from __future__ import annotations

import html
import threading
from typing import Any

import ipywidgets as widgets

from gqc_lab import Experiment
from gqc_lab.loop.norm_schedule import CURVES
from gqc_widgets.display import Points
from gqc_widgets.live_figure import LiveFigure
from gqc_widgets.live_run import LiveRun
from gqc_widgets.panels import schedule_figure
from gqc_widgets.runner import Runner
from gqc_widgets.schedule import NormScheduleModel

#: field -> (label, curves that use it)
FIELDS = {
    "start_norm": ("start norm", CURVES[:4]),
    "end_norm": ("end norm", CURVES[:3]),
    "norm_warmup_microbatches": ("warmup [microbatches]", CURVES[:4]),
    "norm_warmup_multiplier": ("first / start norm", CURVES[:4]),
    "norm_exponent": ("exponent", ("polynomial",)),
    "norm_points": ("points: share norm, ...", ("points",)),
}


class NormScheduleEditor(widgets.VBox):
    """Edit the norm threshold's plan before a run and during it.

    An edit that is right counts from the next microbatch; a wrong one says what is wrong, and the
    run keeps the last right plan.  With the curve "points", a click into the figure draws a point
    or, on a point, removes it.

    Args:
        run: a `LiveRun`, which is then followed while it trains, or an experiment.
    Attributes:
        model: what is shown; `export` of it makes parameters for papermill.
    Raises: ValueError: the experiment has no norm schedule.
    """

    _runner: Runner | None = None

    def __init__(self, run: LiveRun | Experiment) -> None:
        super().__init__(layout=widgets.Layout(width="100%"))
        experiment = run.experiment if isinstance(run, LiveRun) else run
        self._runner = run.runner if isinstance(run, LiveRun) else None
        optimizer = experiment.parts.get("optimizer")
        self.model = NormScheduleModel(experiment, getattr(optimizer, "max_draws", None))
        self._drawing = threading.RLock()  # an edit and the training thread
        self._is_refreshing = False
        self._shown: dict[str, Any] = {}
        self._make_parts()
        fields = [self.curve, *(self._boxes[name] for name in FIELDS), self.button, self.text]
        left = widgets.VBox(fields, layout=widgets.Layout(width="300px", flex="0 0 300px"))
        right = widgets.VBox(
            [self.figure, self.notes], layout=widgets.Layout(flex="1 1 0", min_width="0")
        )
        row = widgets.HBox([left, right], layout=widgets.Layout(width="100%"))
        self.children = [row]
        self.add_class("gqc-norm-schedule")
        if self._runner is not None:
            self._runner.listeners.append(self._follow)
        self._refresh()

    # ---- parts

    def _make_parts(self) -> None:
        self.curve = widgets.Dropdown(
            options=CURVES, description="curve", style=_STYLE, layout=_WIDE
        )
        self.curve.observe(lambda change: self._edit("norm_curve", change["new"]), "value")
        self.fields: dict[str, widgets.Text] = {}
        self.errors: dict[str, widgets.HTML] = {}
        self._boxes: dict[str, widgets.VBox] = {}
        for name in FIELDS:
            self._make_field(name)
        self.button = widgets.Button(
            description="Export", icon="code", tooltip="The plan as parameters for papermill"
        )
        self.button.on_click(lambda _: self._export())
        self.text = widgets.HTML()
        self.notes = widgets.HTML()
        self.figure = LiveFigure(schedule_figure(self.model.total, self.model.max_draws))
        self.figure.on_click("clicks", self._put)
        self.figure.on_click("points", self._remove)

    def _make_field(self, name: str) -> None:
        label, _ = FIELDS[name]
        kind = widgets.Textarea if name == "norm_points" else widgets.Text
        field = kind(
            description=label,
            tooltip=self.model.controls.specs[name].meaning,
            continuous_update=False,
            style=_STYLE,
            layout=_WIDE,
        )
        field.observe(lambda change: self._edit(name, change["new"]), "value")
        self.fields[name], self.errors[name] = field, widgets.HTML()
        self._boxes[name] = widgets.VBox([field, self.errors[name]])

    # ---- what a person does

    def _edit(self, name: str, content: str) -> None:
        with self._drawing:  # the training thread may be refreshing the fields
            if not self._is_refreshing:
                self.model.edit(name, content)
                self._refresh()

    def _put(self, step: float, norm: float) -> None:
        self.model.put_point(step / self.model.total, norm)
        self._refresh()

    def _remove(self, step: float, norm: float) -> None:
        self.model.remove_point(step / self.model.total)
        self._refresh()

    def export(self) -> dict[str, Any]:
        """The plan as a dict of parameters; see `NormScheduleModel.export`."""
        return self.model.export()

    def _export(self) -> None:
        yaml = html.escape(self.model.export_yaml())
        self.text.value = f"<pre style='white-space:pre-wrap;line-height:1.3'>{yaml}</pre>"

    # ---- what is shown

    def _refresh(self) -> None:
        """Fields and figure after an edit."""
        model = self.model
        with self._drawing:
            self._is_refreshing, self._shown = True, dict(model.controls)
            self.curve.value = model.text("norm_curve")
            for name, (_, curves) in FIELDS.items():
                self.fields[name].value = model.text(name)
                error = html.escape(model.errors.get(name, ""))
                self.errors[name].value = (
                    f"<div class='gqc-error' style='color:#d55e00;line-height:1.3'>{error}</div>"
                    if error
                    else ""
                )
                is_used = self.curve.value in curves
                self._boxes[name].layout.display = None if is_used else "none"
            self._is_refreshing = False
            is_drawn = self.curve.value == "points"
            self.figure.fill({"clicks": model.raster() if is_drawn else _NONE})
            self._draw()

    def _follow(self, runner: Runner) -> None:
        with self._drawing:
            if self._shown != dict(self.model.controls):  # a cell has set them
                self._refresh()
            else:
                self._draw()

    def _draw(self) -> None:
        model = self.model
        statistics = self._runner.statistics if self._runner is not None else {}
        plan = model.curve()
        curves: dict[str, Points] = {"plan": plan, **self._past()}
        curves["expected"] = _known(plan[0], model.expected_draws(statistics))
        is_drawn = model.plan.norm_curve == "points"
        points = model.plan.norm_points if is_drawn else ()
        curves["points"] = [s * model.total for s, _ in points], [y for _, y in points]
        if model.max_draws is not None:
            curves["max_draws"] = plan[0], [float(model.max_draws)] * len(plan[0])
        self.figure.fill(curves)
        self.notes.value = self._notes(statistics)

    def _past(self) -> dict[str, Points]:
        """What was applied and came of it, against microbatches."""
        if self._runner is None:
            return {}
        experiment, curves = self._runner.experiment, self._runner.curves
        names = {"applied": "gradient_norm_threshold", "grad_norm": "grad_norm"}
        names["num_draws"] = "num_draws"
        found = {}
        for key, name in names.items():
            x, y = curves.points(name)
            found[key] = [value * self.model.total / experiment.total for value in x], y
        return found

    def _notes(self, statistics: dict[str, Any]) -> str:
        model, notes = self.model, []
        expected = model.expected_draws_now(statistics)
        if expected is not None:
            notes.append(f"expected draws now: <b>{expected}</b>")
        elif self._runner is not None:
            notes.append("expected draws: not known before a step took two draws")
        share = model.forced_share(statistics)
        if share is not None:
            notes.append(f"steps forced by max_draws: <b>{share:.1%}</b>")
        warning = model.warning(statistics)
        text = " · ".join(notes)
        if warning:
            text += f"<div class='gqc-warning' style='color:#d55e00'>{html.escape(warning)}</div>"
        return f"<div style='line-height:1.4;padding-left:70px'>{text}</div>"

    def close(self) -> None:
        """Take the view off the page; the run goes on."""
        if self._runner is not None and self._follow in self._runner.listeners:
            self._runner.listeners.remove(self._follow)
        super().close()


_NONE: Points = ([], [])
_STYLE = {"description_width": "160px"}
_WIDE = widgets.Layout(width="290px")


def _known(x: list[float], y: list[float | None] | None) -> Points:
    """The points that have a y; NaN makes a gap for the others."""
    return (x, [float("nan") if v is None else v for v in y]) if y is not None else _NONE
