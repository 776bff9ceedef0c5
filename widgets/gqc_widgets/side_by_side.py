"""The same training at several alphas from one start: same weights, data and other controls."""

import html
import math
import threading
from typing import Any

import ipywidgets as widgets

from gqc.scalers.settings import ESTIMATORS
from gqc_lab import Controls, Experiment
from gqc_lab.loop.gate import FAILED, RUNNING
from gqc_lab.loop.jupyter import current_cell
from gqc_lab.loop.live import Live
from gqc_widgets.editor import columns, note
from gqc_widgets.fields import escape, read_number, say
from gqc_widgets.live import progress_text
from gqc_widgets.panels import Panels, side_panels

BEGINNING, HERE = "the beginning", "where the run is"


class SideBySide(widgets.VBox):
    """Train twins of a run, one for each alpha, and draw them together.

    Each trains in a thread of its own.  It differs from the run only in its control ``alpha``, and
    its history says so, as for every steered run.

    Args:
        live: of an experiment with a method ``twin`` and the control ``alpha``.
    Attributes:
        runners: alpha -> its `Live`, from the last `start`.
    """

    def __init__(self, live: Live) -> None:
        self.live, self.runners = live, dict[float, Live]()
        super().__init__(layout=widgets.Layout(width="100%"))
        self._own: str = live.experiment.scaler.estimator  # type: ignore[attr-defined]
        self._cell = current_cell()  # when it runs again, the twins are stopped
        self._drawing = threading.RLock()  # the twins' threads
        wide = widgets.Layout(width="100%", max_width="400px")
        look: dict[str, Any] = {"style": {"description_width": "80px"}, "layout": wide}
        self.alphas = widgets.Text("0, 0.1", description="alphas", **look)
        self.place = widgets.Dropdown(options=[BEGINNING, HERE], description="start at", **look)
        self.estimator = widgets.Dropdown(
            options=list(ESTIMATORS), value=self._own, description="estimator", **look
        )
        self.starts = widgets.Button(
            description="Run", icon="play", tooltip="Train one run for each alpha"
        )
        self.stops = widgets.Button(
            description="Stop", icon="stop", tooltip="End these runs", disabled=True
        )
        self.starts.on_click(lambda _: self._press())
        self.stops.on_click(lambda _: self.stop())
        self.panels, self.progress = Panels([]), widgets.HTML()
        left = [self.alphas, self.place, self.estimator, widgets.HBox([self.starts, self.stops])]
        self.children = [columns(left, [self.panels, self.progress])]

    def _press(self) -> None:
        try:
            self.start()
        except Exception as error:  # Jupyter hides what a callback raises
            self.progress.value = say(html.escape(str(error)))

    def start(self) -> None:
        """Stop earlier twins, and train those that the fields ask for.

        Raises: ValueError: an invalid alpha, or another estimator in mid-run.
        """
        experiment, estimator = self.live.experiment, self.estimator.value
        alphas = parse_alphas(self.alphas.value, experiment.controls)
        if estimator != self._own and self.place.value == HERE:
            raise ValueError(
                f"estimator={estimator!r}: another estimator has other statistics; start at the "
                "beginning"
            )
        self.stop()
        is_here, state = self.place.value == HERE, None
        if estimator == self._own:
            state = self.live.snapshot() if is_here else self.live.beginning
        twins: dict[float, Experiment] = {}
        for alpha in alphas:
            twins[alpha] = twin = experiment.twin(estimator)  # type: ignore[attr-defined]
            if state is not None:
                twin.load_state_dict(state)
            twin.replay([])  # what is to be replayed in the experiment is not in its twins
            twin.controls.update({**experiment.controls, "alpha": alpha})
        with self._drawing:
            self.panels.panels = side_panels(experiment.unit, experiment.loss_unit, alphas)
        more: Any = {"cell": self._cell, "every_seconds": math.inf}  # the checkpoint is the run's
        self.runners = {alpha: Live(twin, **more) for alpha, twin in twins.items()}
        for runner in self.runners.values():
            runner.listeners.append(lambda _: self._show())
            runner.start()

    def stop(self) -> None:
        """End all twins for good."""
        for runner in self.runners.values():
            runner.pause()
        for runner in self.runners.values():
            runner.stop()

    def _show(self) -> None:
        with self._drawing:
            runs = list(self.runners.values())
            is_training = any(run.state == RUNNING for run in runs)
            self.starts.disabled = is_training  # it would discard what has been trained
            self.stops.disabled = not is_training
            names = ("smooth loss", "val_loss", "factor")
            self.panels.fill(
                {f"{n} {i}": run.curves.points(n) for n in names for i, run in enumerate(runs)}
            )
            lines = [f"alpha <b>{alpha:g}</b>: {_news(r)}" for alpha, r in self.runners.items()]
            errors = [escape(run.error) for run in runs if run.state == FAILED and run.error]
            self.progress.value = note("<br>".join(lines)) + say("<br>".join(errors))


def _news(runner: Live) -> str:
    validation = runner.experiment.last("val_loss")
    loss = "" if validation is None else f" · held-out loss {validation:.4g}"
    return f"{runner.state}, {progress_text(runner)}{loss}"


def parse_alphas(text: str, controls: Controls) -> list[float]:
    """Read two or more values of alpha from a text such as ``0, 0.1, 0.5``.

    Args:
        controls: with alpha.
    Raises: ValueError: fewer than two, a repeated one, or one that is not allowed.
    """
    words = text.replace(";", ",").split(",")
    alphas = [controls.specs["alpha"].check("alpha", read_number(word)) for word in words]
    if len(set(alphas)) < 2 or len(set(alphas)) < len(alphas):
        raise ValueError(f"alphas={text!r}: expected two or more that differ, such as '0, 0.1'")
    return alphas
