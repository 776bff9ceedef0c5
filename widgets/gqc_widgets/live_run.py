"""View of a run: buttons, progress, numbers and curves."""

from __future__ import annotations

import html
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from gqc_lab import Experiment
from gqc_lab.runs import current_run_dir
from gqc_widgets.fields import say
from gqc_widgets.jupyter import current_cell
from gqc_widgets.live_figure import LiveFigure
from gqc_widgets.panels import run_figure, run_panels
from gqc_widgets.runner import FAILED, FINISHED, PAUSED, READY, RUNNING, STOPPED, Runner, claim
from gqc_widgets.status import progress_text, rows

#: button -> (icon, tooltip, states in which it can be pressed)
BUTTONS = {
    "start": ("play", "Train in the background", (READY, PAUSED)),
    "pause": ("pause", "Pause after this microbatch", (RUNNING,)),
    "step": ("step-forward", "Train for one microbatch", (READY, PAUSED)),
    "stop": ("stop", "End the run for good", (READY, PAUSED, RUNNING)),
    "reset": ("undo", "Return to the beginning, with the controls as they are set now",
              (PAUSED, RUNNING, STOPPED, FINISHED, FAILED)),
    "save": ("save", "Save the run so far, and the parameters that repeat it",
             (PAUSED, RUNNING, STOPPED, FINISHED)),
}  # fmt: skip


class LiveRun(widgets.VBox):
    """Train ``experiment`` in a thread while this view is on the page; the kernel stays free.

    Running the cell again stops the run that it started before, as does `close`.

    Args:
        experiment: any; it may have begun.
        parameters: of the notebook that built it; *Save* writes them together with the changes.
        folder: where *Save* makes a new folder each time.
    Attributes:
        runner: what the buttons call; cells can call it, too.
    Raises: RuntimeError: in a batch.
    """

    _is_made = False

    def __init__(
        self,
        experiment: Experiment,
        parameters: Mapping[str, Any] | None = None,
        folder: str | Path = "runs/live",
    ) -> None:
        super().__init__(layout=widgets.Layout(width="100%"))
        if current_run_dir() is not None:
            raise RuntimeError(
                "LiveRun in a batch: nobody is there to press Start; set interactive=False"
            )
        self.experiment = experiment
        self._parameters, self._folder = dict(parameters or {}), folder
        cell = current_cell()
        self.runner = Runner(experiment, enter=cell.enter if cell else None)
        if cell:
            claim(self.runner, cell.owner, cell.turn)
        self._drawing = threading.RLock()  # a button's thread and the training thread
        self._make_parts()
        top = widgets.HBox([*self.buttons.values(), self.state])
        middle = widgets.HBox([self.bar, self.progress])
        self._frame = [top, middle, self.message, self.table]
        self._make_figure()
        self.add_class("gqc-live-run")
        self._is_made = True
        self.runner.listeners.append(self._show)
        self._show(self.runner)

    def _make_parts(self) -> None:
        self.buttons = {name: self._button(name) for name in BUTTONS}
        self.state = widgets.HTML(layout=widgets.Layout(margin="2px 0 0 12px"))
        total = self.experiment.total
        self.bar = widgets.FloatProgress(
            max=total, bar_style="info", layout=widgets.Layout(width="240px")
        )
        self.progress = widgets.HTML()
        self.message = widgets.HTML()
        self.table = widgets.HTML()

    def _make_figure(self) -> None:
        """Make the figure with a panel for everything that is known to be recorded."""
        experiment = self.experiment
        self._fields = self._recorded()
        optimizer = experiment.parts.get("optimizer")
        max_draws = getattr(optimizer, "max_draws", None)
        self.figure = LiveFigure(
            run_figure(experiment.unit, self._fields, experiment.loss_unit, max_draws),
            self.runner.curves.all(),
        )
        *above, table = self._frame
        self.children = [*above, self.figure, table]

    def _recorded(self) -> set[str]:
        experiment = self.experiment
        return {"loss", *experiment.evaluated, *experiment.measured, *(self.runner.record or {})}

    def _button(self, name: str) -> widgets.Button:
        icon, tooltip, _ = BUTTONS[name]
        button = widgets.Button(
            description=name.capitalize(),
            icon=icon,
            tooltip=tooltip,
            layout=widgets.Layout(width="88px"),
        )
        button.on_click(lambda _: self._press(name))
        return button

    def _press(self, name: str) -> None:
        self.message.value = ""
        try:
            if name == "save":
                place = self.runner.save(self._folder, self._parameters)
                self.message.value = f"saved to <code>{html.escape(str(place))}</code>"
            else:
                getattr(self.runner, name)()
        except Exception as error:  # Jupyter hides what a callback raises
            self.message.value = f"<b>{name}:</b> {html.escape(f'{error!r}')}"

    def _show(self, runner: Runner) -> None:
        with self._drawing:
            for name, (_, _, states) in BUTTONS.items():
                self.buttons[name].disabled = runner.state not in states
            self.buttons["start"].description = "Resume" if runner.state == PAUSED else "Start"
            steered = ", steered" if self.experiment.is_steered else ""
            self.state.value = (
                f"<b>{html.escape(self.experiment.label)}</b>: {runner.state}{steered}"
            )
            self.bar.value = self.experiment.done
            self.bar.bar_style = {FAILED: "danger", FINISHED: "success"}.get(runner.state, "info")
            self.progress.value = progress_text(runner)
            self.table.value = _table(rows(runner))
            if runner.error is not None:
                self.message.value = _traceback(runner.error)
            if run_panels(self._recorded()) != run_panels(self._fields):
                self._make_figure()  # the first record has shown more
            self.figure.fill(runner.curves.all())

    def close(self) -> None:
        """Stop the run and take the view off the page."""
        if self._is_made:  # ipywidgets also closes a view whose making was refused
            self.runner.listeners.clear()
            self.runner.stop()
        super().close()


def _table(entries: list[tuple[str, str]]) -> str:
    cells = "".join(
        f"<div><span style='opacity:.8'>{html.escape(name)}</span><br>"
        f"<b>{html.escape(value)}</b></div>"
        for name, value in entries
    )
    style = "display:flex;flex-wrap:wrap;gap:6px 28px;white-space:nowrap;line-height:1.35"
    return f"<div style='{style}'>{cells}</div>"


def _traceback(text: str) -> str:
    last = html.escape(text.strip().splitlines()[-1])
    return say(f"<b>{last}</b><pre style='white-space:pre-wrap'>{html.escape(text)}</pre>")
