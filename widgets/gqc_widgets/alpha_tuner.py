"""Tuner of a variance scaler: steer it, see what other settings would do, run several alphas."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as widgets
import pandas as pd

from gqc.scalers.settings import ESTIMATORS
from gqc_lab import Controls, Experiment
from gqc_lab.figures import LABELS as LABELS_OF_X
from gqc_lab.loop.jupyter import current_cell
from gqc_lab.loop.live import Live
from gqc_lab.loop.scaler_controls import SCALER, scaler_settings
from gqc_lab.loop.settings import axis_labels
from gqc_widgets.editor import Editor, columns, note
from gqc_widgets.fields import Fields, escape, read_number, say
from gqc_widgets.panels import VARIANCES, Panels, scaler_panels, side_panels, what_if_panels
from gqc_widgets.scaler import ScalerModel
from gqc_widgets.side_by_side import SideBySide

LABELS = axis_labels(SCALER)
BEGINNING, HERE = "the beginning", "where the run is"


class VGSAlphaTuner(Editor):
    """Tune the variance scaler of a run while it trains.

    *Steer*: a valid edit takes effect at the next microbatch; an invalid one shows what is wrong,
    and the run keeps the last valid value.  *What if*: the factor that other settings would have
    made of the recorded variance.  *Side by side*: the run again at several alphas.

    Args:
        run: a `Live`, which is then followed while it trains, or an experiment.
        recorded: history of a run for *what if*; None: that of ``run``.
    Attributes:
        fields, guesses: the input fields of *steer* and *what if*.
        model: what is shown.
        side: the runs side by side.
    Raises: ValueError: the experiment has no variance scaler, or ``recorded`` no variances.
    """

    _is_made = False

    def __init__(self, run: Live | Experiment, recorded: pd.DataFrame | None = None) -> None:
        super().__init__(run)
        self.model = ScalerModel(self.experiment, recorded)
        self._is_following = recorded is None
        self._has_estimator = _estimator(self.experiment)
        self.side = SideBySide(self.experiment, current_cell())
        self.side_panels = Panels([])
        sections = [self._make_steering(), self._make_what_if(), self._make_side()]
        self.children = [self.banner, *sections]
        self.add_class("gqc-alpha-tuner")
        self.follow()
        self.side.listeners.append(lambda _: self._show_side())
        self._is_made = True
        self._draw()
        self._guess()

    def _make_steering(self) -> widgets.VBox:
        controls = self.experiment.controls
        self.fields = Fields(controls, LABELS, self._draw, sliders=LABELS)
        kept = widgets.HTML(
            "<div style='line-height:1.3;padding-left:8px'>estimator: "
            f"<b>{self._has_estimator}</b>; to use another one, or to compare alphas, start new "
            "runs below</div>"
        )
        self.panels = Panels(scaler_panels(_along(self.experiment.unit)))
        left = [self.fields, kept, self.button, self.text]
        return _section("Steer", left, [self.panels], "gqc-steer")

    def _make_what_if(self) -> widgets.VBox:
        guess = self.model.guess
        labels = {name: LABELS[name] for name in guess}
        self.guesses = Fields(guess, labels, self._guess, sliders=labels)
        self.note = widgets.HTML()
        self.what_if_panels = Panels(what_if_panels(_along(self.model.x)))
        right = [self.what_if_panels, self.note]
        return _section("What if", [self.guesses], right, "gqc-what-if")

    def _make_side(self) -> widgets.VBox:
        wide = widgets.Layout(width="100%", max_width="400px")
        look: dict[str, Any] = {"style": {"description_width": "80px"}, "layout": wide}
        self.alphas = widgets.Text("0, 0.1", description="alphas", **look)
        self.place = widgets.Dropdown(options=[BEGINNING, HERE], description="start at", **look)
        self.estimator = widgets.Dropdown(
            options=list(ESTIMATORS), value=self._has_estimator, description="estimator", **look
        )
        self.start = widgets.Button(
            description="Run", icon="play", tooltip="Train one run for each alpha"
        )
        self.stop = widgets.Button(
            description="Stop", icon="stop", tooltip="End these runs", disabled=True
        )
        self.start.on_click(lambda _: self._start_side())
        self.stop.on_click(lambda _: self.side.stop())
        self.progress = widgets.HTML()
        left = [self.alphas, self.place, self.estimator, widgets.HBox([self.start, self.stop])]
        right = [self.side_panels, self.progress]
        section = _section("Side by side", left, right, "gqc-side-by-side")
        if not hasattr(self.experiment, "twin"):
            section.layout.display = "none"
        return section

    def export(self) -> dict[str, Any]:
        return scaler_settings(self.experiment.controls)

    def _start_side(self) -> None:
        try:
            alphas = parse_alphas(self.alphas.value, self.experiment.controls)
            is_new = self.estimator.value != self._has_estimator
            state = None
            if self.place.value == HERE:
                state = (self.live.snapshot if self.live else self.experiment.state_dict)()
            elif self.live is not None and not is_new:
                state = self.live.beginning
            x, unit = _along(self.experiment.unit), self.experiment.loss_unit
            with self._drawing:
                self.side_panels.panels = side_panels(x, unit, alphas)
            self.side.start(alphas, state, self.estimator.value if is_new else None)
        except Exception as error:  # Jupyter hides what a callback raises
            self.progress.value = say(html.escape(str(error)))

    def _follow(self, live: Live) -> None:
        self.fields.follow()
        self._draw()
        if self._is_following and self.model.is_behind:
            self._guess()

    def _draw(self) -> None:
        """Show the run as it is."""
        self._refresh_export()
        if self.live is None:
            return
        with self._drawing:
            curves = self.live.curves
            keys = [*(trace["meta"] for trace in VARIANCES), "factor"]
            points = {key: curves.points(key) for key in keys}
            points["cap"] = self.model.cap(curves)
            self.panels.fill(points | self.model.factors_at(curves))

    def _guess(self) -> None:
        """Show the recorded factor and that of the guessed settings."""
        with self._drawing:
            self.what_if_panels.fill(self.model.what_if())
            self.note.value = note(html.escape(self.model.what_if_note()))

    def _show_side(self) -> None:
        with self._drawing:
            self.stop.disabled = not self.side.is_running
            self.start.disabled = self.side.is_running  # it would discard what has been trained
            names = ("smooth loss", "val_loss", "factor")
            curves = {f"{n} {i}": xy for n in names for i, xy in enumerate(self.side.points(n))}
            self.side_panels.fill(curves)
            lines = [f"alpha <b>{a:g}</b>: {text}" for a, text in self.side.progress().items()]
            errors = say("<br>".join(escape(error) for error in self.side.errors))
            self.progress.value = note("<br>".join(lines)) + errors

    def close(self) -> None:
        """Take the view off the page and end what runs side by side; the run itself goes on."""
        if self._is_made:  # ipywidgets also closes a view whose making was refused
            self.side.listeners.clear()
            self.side.stop()
        super().close()


def parse_alphas(text: str, controls: Controls) -> list[float]:
    """Read two or more values of alpha from a text such as ``0, 0.1, 0.5``.

    Args:
        controls: with alpha.
    Raises: ValueError: fewer than two, a repeated one, or one that is not allowed.
    """
    words = text.replace(";", ",").split(",")
    numbers = [read_number("alpha", word) for word in words]
    alphas = [controls.check(controls, {"alpha": number})["alpha"] for number in numbers]
    if len(set(alphas)) < 2 or len(set(alphas)) < len(alphas):
        raise ValueError(f"alphas={text!r}: expected two or more that differ, such as '0, 0.1'")
    return alphas


def _estimator(experiment: Experiment) -> str:
    return str(experiment.scaler.estimator)  # type: ignore[attr-defined]


def _along(unit: str) -> str:
    return LABELS_OF_X.get(unit, unit)


def _section(
    title: str, left: list[widgets.Widget], right: list[widgets.Widget], name: str
) -> widgets.VBox:
    head = widgets.HTML(f"<b>{title}</b>")
    section = widgets.VBox([head, columns(left, right)], layout=widgets.Layout(width="100%"))
    section.add_class(name)
    return section
