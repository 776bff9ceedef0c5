"""Tuner of a variance scaler: steer it, see what other settings would do, run several alphas."""

import html
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd

from gqc_lab import Controls, Experiment
from gqc_lab.loop.curves import XY, thin
from gqc_lab.loop.live import Live
from gqc_lab.loop.scaler_controls import (
    COUNT,
    LAW,
    NAMES,
    VARIANCE,
    scaled_steps,
    scaler_settings,
    what_if,
)
from gqc_lab.stats.numbers import decimals
from gqc_widgets.editor import Editor, columns, note
from gqc_widgets.fields import Fields
from gqc_widgets.panels import VARIANCES, Panels, scaler_panels, what_if_panels
from gqc_widgets.side_by_side import SideBySide

PERCENTILES = ("p10", "p50", "p90")


class ScalerModel:
    """The variance scaler of one run, before it and while it trains, and a guess next to it.

    Args:
        live: with the controls of `gqc_lab.loop.scaler_controls`.
        recorded: history of a run for `what_if`; None: that of ``live`` so far.
    Attributes:
        guess: controls with other settings, which no run follows.
    Raises: ValueError: the run has no such controls, or ``recorded`` no variances.
    """

    def __init__(self, live: Live, recorded: pd.DataFrame | None = None) -> None:
        self.live, self.controls = live, live.experiment.controls
        if not set(NAMES) <= set(self.controls):
            raise ValueError(
                f"experiment {live.label!r} has no variance scaler: expected controls "
                f"{', '.join(NAMES)}, as with method='vgs'"
            )
        self.guess = Controls({name: self.controls.specs[name] for name in LAW})
        self.guess.update({name: self.controls[name] for name in LAW})
        self.x = live.experiment.unit
        self.is_recorded = recorded is not None
        if recorded is not None:
            self.x = next((x for x in (self.x, "tokens", "examples") if x in recorded), self.x)
            self._steps = scaled_steps({str(name): recorded[name] for name in recorded}, self.x)

    @property
    def steps(self) -> dict[str, Any]:
        """The `scaled_steps` of the recorded run, or of this one so far."""
        if self.is_recorded:
            return self._steps
        curves = self.live.curves
        columns = {name: curves.column(name) for name in ("factor", VARIANCE, COUNT, self.x)}
        return scaled_steps({**columns, "stepped": curves.column("stepped") == 1}, self.x)

    def what_if(self) -> dict[str, XY]:
        """Return the curves ``recorded`` and ``what_if``: the factor as it was, and as guessed."""
        steps = self.steps
        values = {"recorded": steps["factor"], "what_if": what_if(steps, self.guess)}
        return {name: thin(steps[self.x], y) for name, y in values.items()}

    def what_if_note(self) -> str:
        """Return the guess in numbers, after the longer of both warmups; empty before its end."""
        steps, guess = self.steps, self.guess
        warmup = max(guess["warmup_steps"], self.controls["warmup_steps"])
        is_warm = steps["count"] >= warmup
        if not is_warm.any():
            return ""
        factor = what_if(steps, guess)[is_warm]
        least = 100 * float(np.mean(factor <= guess["min_scaling_factor"]))
        recorded, guessed = (decimals(f.mean(), 3) for f in (steps["factor"][is_warm], factor))
        text = (
            f"after {warmup} steps of warmup: mean factor {recorded} recorded, {guessed} what if "
            f"({decimals(least, 0)}% of steps at the smallest factor)"
        )
        most = steps["variance"].max()
        at_most = float(np.mean(steps["variance"][is_warm] == most))
        if at_most > 0.01 and (guess["variance_cap"] or np.inf) > most:
            text += f"; the record is cut at a variance of {most:.3g}, in {at_most:.0%} of steps"
        return text

    def factors_at(self) -> dict[str, XY]:
        """Return the factor that each percentile of V over tensors gives now, by ``at pNN``."""
        law = {name: self.controls[name] for name in LAW}
        found = {}
        for level in PERCENTILES:
            x, variance = self.live.curves.points(f"vgs/stochastic_var_{level}")
            always = {"variance": variance, "count": np.full(len(variance), np.inf)}
            found[f"at {level}"] = x, what_if(always, law)
        return found

    def cap(self) -> XY:
        """Return the present cap of V as a horizontal line; empty without a cap."""
        x, _ = self.live.curves.points(VARIANCE)
        cap = self.controls["variance_cap"]
        shown = x[[0, -1]] if len(x) and cap else x[:0]
        return shown, np.full(len(shown), float(cap or 0))


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
        self.fields = Fields(self.experiment.controls, NAMES, self._draw, has_sliders=True)
        self.panels = Panels(scaler_panels(self.experiment.unit))
        guess = self.model.guess
        self.guesses = Fields(guess, LAW, self._guess, has_sliders=True)
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

    def _refresh(self) -> None:
        self._draw()
        if not self.model.is_recorded:
            self._guess()

    def _draw(self) -> None:
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
