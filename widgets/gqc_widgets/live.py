"""`Live` with its view: buttons, controls, panels, and a picture that stays in the file."""

import html
import math
import os
import threading
import time
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import Image, display

from gqc_lab import Experiment
from gqc_lab.loop import live as lab
from gqc_lab.loop.controls import NORM_NAMES
from gqc_lab.loop.gate import FAILED, FINISHED, PAUSED, READY, REPLACED, RUNNING, STOPPED
from gqc_lab.loop.own_loop import Loop
from gqc_lab.loop.scaler_controls import SCALER
from gqc_lab.runs import current_run_dir
from gqc_lab.stats.numbers import decimals
from gqc_widgets.fields import Fields, escape, say
from gqc_widgets.panels import Panel, Panels, draw, names_in, run_panels

#: button -> (icon, tooltip, states in which it can be pressed)
BUTTONS = {
    "start": ("play", "Train", (READY, PAUSED)),
    "pause": ("pause", "Pause after this batch", (RUNNING,)),
    "step": ("step-forward", "Train for one batch", (READY, PAUSED)),
    "stop": ("stop", "End the run for good", (PAUSED, RUNNING)),
    "reset": ("undo", "Return to the beginning, with the controls as they are set now",
              (PAUSED, RUNNING, STOPPED, FINISHED, FAILED)),
    "save": ("save", "Save the run so far, and the parameters that repeat it",
             (PAUSED, RUNNING, STOPPED, FINISHED)),
}  # fmt: skip
#: key of a record or of the wrapper's statistics -> what it is called
NUMBERS = {
    "microbatch": "microbatches",
    "steps": "steps",
    "loss": "loss",
    "val_loss": "held-out loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "gradient_norm_threshold": "norm threshold",
    "num_draws": "draws",
    "noise_scale": "noise / signal",
    "factor": "factor",
    "vgs/normalized_variance": "variance V",
    "vgs/unresolved": "unresolved tensors",
    "num_forced": "forced steps",
    "num_discarded": "discarded",
}
PICTURE_SECONDS = 120.0  #: between two pictures of a run that trains; each takes half a second


class Live(lab.Live):
    """A training that can be watched and steered from a notebook; see `gqc_lab.Live`.

    ``for batch in live(loader)`` shows the view below the cell, as does ``live`` in its last line.
    Beside the view the cell keeps a picture of its last state.  Where nobody is there, as under
    papermill, there is the picture alone.
    """

    _handle: Any = None
    _drawn: tuple[str, int] | None = None
    _draw_at = math.inf

    @cached_property
    def view(self) -> "LiveView":
        """The view, made when it is first asked for."""
        return LiveView(self)

    def show(self) -> None:
        """Show the view, and the picture in its place where no view is."""
        cell = lab.current_cell()
        if cell is None or threading.current_thread() is not threading.main_thread():
            return
        if cell.is_watched:
            display(self.view)
        self._handle = display({"text/plain": ""}, raw=True, display_id=True)
        self._draw_at = time.monotonic() + PICTURE_SECONDS

    _ipython_display_ = show

    def _enter(self) -> bool:
        if self._handle is None:
            self.show()
        return super()._enter()

    def background(self, function: Any) -> Any:
        if self._handle is None:
            self.show()
        return super().background(function)

    def _tell(self) -> None:
        super()._tell()
        if self.state != RUNNING:
            self._draw()

    def _update(self, is_whole: bool) -> None:
        super()._update(is_whole)
        if time.monotonic() > self._draw_at:
            self._draw()

    def _draw(self) -> None:
        now = self.state, self.experiment.microbatch
        if self._handle is None or not now[1] or now == self._drawn:
            return
        self._drawn, self._draw_at = now, time.monotonic() + PICTURE_SECONDS
        panels = _panels(self)
        curves = {name: self.curves.points(name) for name in names_in(panels)}
        png = draw(panels, curves, f"{self.label}: {self.state}, {progress_text(self)}")
        if png is not None:
            self._handle.update(Image(png))


def LiveRun(
    experiment: Experiment, parameters: Any = None, folder: str | Path = "runs/live"
) -> Live:
    """Return a `Live` of an experiment that waits for *Start*, and then trains in a thread.

    Raises: RuntimeError: in a batch.
    """
    if current_run_dir() is not None:
        raise RuntimeError("LiveRun in a batch: nobody can press Start; set interactive=False")
    return Live(experiment, parameters=parameters, folder=folder)


def _panels(live: lab.Live) -> list[Panel]:
    run, is_own = live.experiment, isinstance(live.experiment, Loop)
    known = () if is_own else ("loss", *run.evaluated, *run.measured)
    fields = dict.fromkeys((*known, *live.curves.names))
    most = getattr(live.optimizer, "max_draws", None)
    return run_panels(fields, run.unit, run.loss_unit, most, has_others=is_own)


class LiveView(widgets.VBox):
    """What is seen of a `Live`; any number of them may show the same one."""

    def __init__(self, live: lab.Live) -> None:
        super().__init__(layout=widgets.Layout(width="100%"))
        self.live = live
        self._drawing = threading.RLock()  # a button's thread and the training thread
        self.buttons = {name: self._button(name) for name in BUTTONS}
        self.state, self.progress, self.message, self.trouble, self.table = (
            widgets.HTML() for _ in range(5)
        )
        self.bar = widgets.FloatProgress(max=1.0, layout=widgets.Layout(width="160px"))
        self.smoothing = widgets.IntSlider(
            int(live.curves.span), min=1, max=500, description="smoothing",
            tooltip="batches averaged, roughly", layout=widgets.Layout(width="300px"),
        )  # fmt: skip
        self.smoothing.observe(lambda _: self._smooth(), "value")
        self.state.add_class("gqc-state")
        self.progress.add_class("gqc-progress")
        top = widgets.HBox([*self.buttons.values(), self.bar, self.state, self.progress])
        top.add_class("gqc-bar")
        self.fields = Fields(live.experiment.controls, has_sliders=True)
        self.panels = Panels(_panels(live))
        below = [self.fields, self.panels, self.smoothing, self.table]
        self.children = [top, self.message, self.trouble, *below]
        self.add_class("gqc-live")
        self.add_class("gqc-live-run")
        live.listeners.append(self._show)
        self._show(live)

    def _show_fields(self) -> None:
        """Show the controls, also one that is new, except those that have an editor."""
        run = self.live.experiment
        edited = {*NORM_NAMES} if isinstance(run, Loop) else {*NORM_NAMES, *SCALER}
        self.fields.add(name for name in run.controls.specs if name not in edited)

    def _button(self, name: str) -> widgets.Button:
        icon, tooltip, _ = BUTTONS[name]
        button = widgets.Button(description=name.capitalize(), icon=icon, tooltip=tooltip)
        button.layout.width = "88px"
        button.on_click(lambda _: self._press(name))
        return button

    def _press(self, name: str) -> None:
        self.message.value = ""
        try:
            result = getattr(self.live, name)()
            if name == "save":
                self.message.value = _recipe(self.live, result)
        except Exception as error:  # Jupyter hides what a callback raises
            self.message.value = say(f"{name}: {html.escape(repr(error))}")

    def _smooth(self) -> None:
        self.live.curves.span = float(self.smoothing.value)
        self._fill()

    def _fill(self) -> None:
        with self._drawing:
            panels = _panels(self.live)
            if panels != self.panels.panels:
                self.panels.panels = panels  # a record has shown more
            points = self.live.curves.points
            self.panels.fill({name: points(name) for name in names_in(panels)})

    def _show(self, live: lab.Live) -> None:
        run = live.experiment
        with self._drawing:
            for name, (_, _, states) in BUTTONS.items():
                self.buttons[name].disabled = live.state not in states
            if isinstance(run, Loop) and live.state == READY:  # its cell starts it
                self.buttons["start"].disabled = self.buttons["step"].disabled = True
            self.buttons["reset"].layout.display = "" if run.parts else "none"
            self.buttons["start"].description = "Resume" if live.state == PAUSED else "Start"
            steered = ", steered" if run.is_steered else ""
            self.state.value = f"<b>{html.escape(live.label)}</b>: {live.state}{steered}"
            is_long = run.total < math.inf
            self.bar.layout.display = "" if is_long else "none"
            self.bar.value = run.done / run.total if is_long else 0
            self.bar.bar_style = {FAILED: "danger", FINISHED: "success"}.get(live.state, "info")
            self.progress.value = progress_text(live)
            self.table.value = _table(live)
            self.trouble.value = _trouble(live)
            self._show_fields()
            self._fill()

    def close(self) -> None:
        """Stop the run and take the view off the page."""
        if self._show in self.live.listeners:
            self.live.listeners.remove(self._show)
            self.live.stop()
        super().close()


def progress_text(live: lab.Live) -> str:
    """Return how far the run is, how fast, and how long it still takes."""
    run = live.experiment
    unit = "batches" if run.unit == "microbatch" else run.unit
    speed, left = live.speed, live.seconds_left
    text = f"{run.done:,}{f' of {run.total:,}' if run.total < math.inf else ''} {unit}"
    text += f" · {decimals(speed, 0)} {unit}/s" if speed is not None else ""
    return text + (f" · {timedelta(seconds=round(left))} left" if left is not None else "")


def _table(live: lab.Live) -> str:
    """Return the present numbers of the run as HTML, in the order of `NUMBERS`."""
    run = live.experiment
    last = {name: run.column(name, -1) for name in run.column_names}
    values = live.statistics | {name: column[0] for name, column in last.items() if column}
    if (validation := run.last("val_loss")) is not None:
        values["val_loss"] = validation
    cells = "".join(
        f"<div><span style='opacity:.8'>{label}</span><br><b>{_text(key, values[key])}</b></div>"
        for key, label in NUMBERS.items()
        if key in values
    )
    style = "display:flex;flex-wrap:wrap;gap:6px 28px;white-space:nowrap;line-height:1.35"
    return f"<div style='{style}'>{cells}</div>"


def _text(key: str, value: Any) -> str:
    is_nan = isinstance(value, float) and math.isnan(value)
    if value is None or (is_nan and key not in ("loss", "val_loss")):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{float(value):.4g}"


def _trouble(live: lab.Live) -> str:
    if live.error is not None:
        last = html.escape(live.error.strip().splitlines()[-1])
        return say(f"<b>{last}</b><br>{escape(live.error)}")
    if live.state == REPLACED:
        return say("replaced: a cell has run again and made another one")
    return say(live.hint, "warning")


def _recipe(live: lab.Live, place: Path) -> str:
    """Say where a run was saved, and what repeats it."""
    file = html.escape(str(place / "parameters.yaml"))
    # Jupyter's server says which notebook a kernel was started for.
    notebook = html.escape(os.environ.get("JPY_SESSION_NAME", "NOTEBOOK.ipynb"))
    repeat = f'gqc run "{notebook}" -f "{file}"'
    if isinstance(live.experiment, Loop):
        repeat = f'live.replay(yaml.safe_load(Path("{file}").read_text())["changes"])'
    return f"saved to <code>{html.escape(str(place))}</code>; <code>{repeat}</code> repeats it"
