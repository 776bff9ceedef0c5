"""Tuner of a variance scaler: steer it, see what other settings would do, run several alphas."""

from __future__ import annotations

import html

import ipywidgets as widgets
import pandas as pd

from gqc_lab import Experiment
from gqc_lab.loop.live import Live
from gqc_lab.loop.scaler_controls import SCALER, scaler_settings
from gqc_lab.loop.settings import axis_labels
from gqc_widgets.editor import Editor, columns, note
from gqc_widgets.fields import Fields
from gqc_widgets.panels import VARIANCES, Panels, scaler_panels, what_if_panels
from gqc_widgets.scaler import ScalerModel
from gqc_widgets.side_by_side import SideBySide

LABELS = axis_labels(SCALER)


class VGSAlphaTuner(Editor):
    """Tune the variance scaler of a run while it trains.

    *Steer*: a valid edit takes effect at the next microbatch; an invalid one shows what is wrong,
    and the run keeps the last valid value.  *What if*: the factor that other settings would have
    made of the recorded variance.  *Side by side*: an experiment again at several alphas.

    Args:
        run: a `Live`, or an experiment.
        recorded: history of a run for *what if*; None: that of ``run``.
    Attributes:
        fields, guesses: the input fields of *steer* and *what if*.
        model: what is shown.
        side: the runs side by side; None: those of a loop of one's own cannot be made here.
    Raises: ValueError: the run has no variance scaler, or ``recorded`` no variances.
    """

    side: SideBySide | None = None

    def __init__(self, run: Live | Experiment, recorded: pd.DataFrame | None = None) -> None:
        super().__init__(run)
        self.model = ScalerModel(self.live, recorded)
        self.fields = Fields(self.experiment.controls, LABELS, self._draw, sliders=LABELS)
        self.panels = Panels(scaler_panels(self.experiment.unit))
        guess = self.model.guess
        labels = {name: LABELS[name] for name in guess}
        self.guesses = Fields(guess, labels, self._guess, sliders=labels)
        self.note = widgets.HTML()
        self.what_if_panels = Panels(what_if_panels(self.model.x))
        own = self.experiment.scaler.estimator  # type: ignore[attr-defined]
        kept = widgets.HTML(note(f"estimator: <b>{own}</b>; another one needs a new run"))
        steer = columns([self.fields, kept, self.button, self.text], [self.panels])
        what_if = columns([self.guesses], [self.what_if_panels, self.note])
        sections = [_section("Steer", steer, "gqc-steer")]
        sections.append(_section("What if", what_if, "gqc-what-if"))
        if hasattr(self.experiment, "twin"):
            self.side = SideBySide(self.live)
            sections.append(_section("Side by side", self.side, "gqc-side-by-side"))
        self.children = [self.banner, *sections]
        self.add_class("gqc-alpha-tuner")
        self.live.listeners.append(self._hear)
        self._draw()
        self._guess()

    def export(self) -> dict[str, object]:
        return scaler_settings(self.experiment.controls)

    def _follow(self) -> None:
        self.fields.follow()
        self._draw()
        if not self.model.is_recorded:
            self._guess()

    def _draw(self) -> None:
        """Show the run as it is."""
        self._refresh_export()
        with self._drawing:
            curves = self.live.curves
            keys = [*(trace["meta"] for trace in VARIANCES), "factor"]
            points = {key: curves.points(key) for key in keys}
            points["cap"] = self.model.cap()
            self.panels.fill(points | self.model.factors_at())

    def _guess(self) -> None:
        """Show the recorded factor and that of the guessed settings."""
        with self._drawing:
            self.what_if_panels.fill(self.model.what_if())
            self.note.value = note(html.escape(self.model.what_if_note()))

    def close(self) -> None:
        """Take the view off the page and end what runs side by side; the run itself continues."""
        if self.side is not None:
            self.side.stop()
        super().close()


def _section(title: str, content: widgets.Widget, name: str) -> widgets.VBox:
    head = widgets.HTML(f"<b>{title}</b>")
    section = widgets.VBox([head, content], layout=widgets.Layout(width="100%"))
    section.add_class(name)
    return section
