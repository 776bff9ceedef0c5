"""The view of a variance scaler: steer it, ask what another had done, run several side by side."""

from __future__ import annotations

import html
import threading

import ipywidgets as widgets
import pandas as pd

from gqc.scalers.settings import ESTIMATORS
from gqc_lab import Experiment
from gqc_widgets.cell import current_cell
from gqc_widgets.fields import STYLE, WIDE, Fields, say
from gqc_widgets.live_figure import LiveFigure
from gqc_widgets.live_run import LiveRun
from gqc_widgets.runner import Runner, claim
from gqc_widgets.scaler import ScalerModel, parse_alphas
from gqc_widgets.scaler_panels import VARIANCES, scaler_figure, side_figure, what_if_figure
from gqc_widgets.side_by_side import SideBySide

LABELS = {
    "alpha": "alpha",
    "beta": "beta",
    "warmup_steps": "warmup [steps]",
    "percentile": "percentile",
    "min_scaling_factor": "least factor",
    "variance_cap": "variance cap",
}
BEGINNING, HERE = "the beginning", "where the run is"


class VGSAlphaTuner(widgets.VBox):
    """Tune the variance scaler of a run while it trains.

    *Steer*: an edit that is right counts from the next microbatch; a wrong one says what is wrong,
    and the run keeps the last right value.  *What if*: the factor that other settings would have
    made of the recorded variance, at once.  *Side by side*: the run again at several alphas.

    Args:
        run: a `LiveRun`, which is then followed while it trains, or an experiment.
        recorded: history of one run, for *what if*; None: of ``run``.
    Attributes:
        model: what is shown; `export` of it makes parameters for papermill.
        side: the runs side by side.
    Raises: ValueError: the experiment has no variance scaler, or ``recorded`` no variances.
    """

    _runner: Runner | None = None
    _is_made = False

    def __init__(self, run: LiveRun | Experiment, recorded: pd.DataFrame | None = None) -> None:
        super().__init__(layout=widgets.Layout(width="100%"))
        experiment = run.experiment if isinstance(run, LiveRun) else run
        self.model = ScalerModel(experiment, recorded)
        self._is_following = recorded is None
        cell = current_cell()
        self.side = SideBySide(experiment, enter=cell.enter if cell else None)
        if cell:
            claim(self.side, cell.owner, cell.turn)
        self._drawing = threading.RLock()  # edits and the threads of all runs
        self._make_steering()
        self._make_what_if()
        self._make_side()
        self.children = [self._steering, self._what_if, self._side]
        self.add_class("gqc-alpha-tuner")
        if isinstance(run, LiveRun):
            self._runner = run.runner
            self._runner.listeners.append(self._follow)
        self.side.listeners.append(lambda _: self._show_side())
        self._is_made = True
        self._draw()
        self._guess()

    # ---- parts

    def _make_steering(self) -> None:
        model = self.model
        self.fields = Fields(model.draft, LABELS, self._draw, slider="alpha")
        estimator = _estimator(model.experiment)
        kept = widgets.HTML(
            f"<div style='line-height:1.3;padding-left:8px'>estimator: <b>{estimator}</b>; another "
            "one, or the alphas compared, takes a new run: below</div>"
        )
        self.button = widgets.Button(
            description="Export", icon="code", tooltip="The settings as parameters for papermill"
        )
        self.button.on_click(lambda _: self._export())
        self.text = widgets.HTML()
        self.figure = LiveFigure(scaler_figure(model.experiment.unit))
        left = [self.fields, kept, self.button, self.text]
        self._steering = _section("Steer", left, [self.figure], "gqc-steer")

    def _make_what_if(self) -> None:
        labels = {name: LABELS[name] for name in self.model.guess.controls}
        self.guesses = Fields(self.model.guess, labels, self._guess, slider="alpha")
        self.note = widgets.HTML()
        self.what_if_figure = LiveFigure(what_if_figure(self.model.x))
        right = [self.what_if_figure, self.note]
        self._what_if = _section("What if", [self.guesses], right, "gqc-what-if")

    def _make_side(self) -> None:
        experiment = self.model.experiment
        self.alphas = widgets.Text("0, 0.1", description="alphas", style=STYLE, layout=WIDE)
        self.place = widgets.Dropdown(
            options=[BEGINNING, HERE], description="start at", style=STYLE, layout=WIDE
        )
        self.estimator = widgets.Dropdown(
            options=list(ESTIMATORS),
            value=_estimator(experiment),
            description="estimator",
            style=STYLE,
            layout=WIDE,
        )
        self.start = widgets.Button(
            description="Run", icon="play", tooltip="Train one run for each alpha"
        )
        self.stop = widgets.Button(
            description="Stop", icon="stop", tooltip="End them", disabled=True
        )
        self.start.on_click(lambda _: self._start_side())
        self.stop.on_click(lambda _: self.side.stop())
        self.progress = widgets.HTML()
        buttons = widgets.HBox([self.start, self.stop])
        self._side_place = widgets.VBox()
        left = [self.alphas, self.place, self.estimator, buttons]
        right = [self._side_place, self.progress]
        self._side = _section("Side by side", left, right, "gqc-side-by-side")
        if not hasattr(experiment, "twin"):
            self._side.layout.display = "none"

    # ---- what a person does

    def export(self) -> dict[str, object]:
        """The settings as a dict of parameters; see `ScalerModel.export`."""
        return self.model.export()

    def _export(self) -> None:
        yaml = html.escape(self.model.export_yaml())
        self.text.value = f"<pre style='white-space:pre-wrap;line-height:1.3'>{yaml}</pre>"

    def _start_side(self) -> None:
        try:
            alphas = parse_alphas(self.alphas.value, self.model.controls.specs)
            runner = self._runner
            state = None
            if self.place.value == HERE:
                state = runner.snapshot() if runner else self.model.experiment.state_dict()
            elif runner is not None:
                state = runner.beginning
            estimator = None
            if self.estimator.value != _estimator(self.model.experiment):
                estimator = self.estimator.value
                state = None if self.place.value == BEGINNING else state
            with self._drawing:
                experiment = self.model.experiment
                figure = side_figure(experiment.unit, experiment.loss_unit, alphas)
                self.side_figure = LiveFigure(figure)
                self._side_place.children = [self.side_figure]
            self.side.start(alphas, state, estimator)
        except Exception as error:  # Jupyter hides what a callback raises
            self.progress.value = say(html.escape(str(error)))

    # ---- what is shown

    def _follow(self, runner: Runner) -> None:
        with self._drawing:
            self.fields.follow()
            self._draw()
            if self._is_following and self.model.is_behind:
                self._guess()

    def _draw(self) -> None:
        """The run, as it is."""
        if self._runner is None:
            return
        with self._drawing:
            curves = self._runner.curves
            points = {name: curves.points(name) for name in (*VARIANCES, "factor")}
            points["cap"] = self.model.cap(curves)
            self.figure.fill(points | self.model.factors_at(curves))

    def _guess(self) -> None:
        """The recorded factor and the guess."""
        with self._drawing:
            self.what_if_figure.fill(self.model.what_if())
            note = html.escape(self.model.what_if_note())
            self.note.value = f"<div style='line-height:1.4;padding-left:70px'>{note}</div>"

    def _show_side(self) -> None:
        with self._drawing:
            is_running = self.side.is_running
            self.stop.disabled = not is_running
            curves = {}
            for name in ("smooth_loss", "val_loss", "factor"):
                for i, points in enumerate(self.side.points(name)):
                    curves[f"{name} {i}"] = points
            self.side_figure.fill(curves)
            lines = [f"alpha <b>{a:g}</b>: {text}" for a, text in self.side.progress().items()]
            errors = [f"<pre>{html.escape(error)}</pre>" for error in self.side.errors]
            self.progress.value = (
                "<div style='line-height:1.4;padding-left:70px'>" + "<br>".join(lines) + "</div>"
            ) + (say("".join(errors)) if errors else "")

    def close(self) -> None:
        """Take the view off the page and end what runs side by side; the run itself goes on."""
        if self._runner is not None and self._follow in self._runner.listeners:
            self._runner.listeners.remove(self._follow)
        if self._is_made:  # ipywidgets closes what was refused too
            self.side.listeners.clear()
            self.side.stop()
        super().close()


def _estimator(experiment: Experiment) -> str:
    return str(experiment.scaler.estimator)  # type: ignore[attr-defined]


def _section(
    title: str, left: list[widgets.Widget], right: list[widgets.Widget], name: str
) -> widgets.VBox:
    head = widgets.HTML(f"<b>{title}</b>")
    row = widgets.HBox(
        [
            widgets.VBox(left, layout=widgets.Layout(width="300px", flex="0 0 300px")),
            widgets.VBox(right, layout=widgets.Layout(flex="1 1 0", min_width="0")),
        ],
        layout=widgets.Layout(width="100%"),
    )
    section = widgets.VBox([head, row], layout=widgets.Layout(width="100%"))
    section.add_class(name)
    return section
