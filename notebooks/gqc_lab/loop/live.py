"""Steer a training while it runs: a loop of your own, ``for batch in live(loader)``, or a study's.

Whoever edits, in whatever thread, only leaves a wish; the loop meets it between two batches, and
every change is recorded with its batch.  `gqc_widgets` shows a `Live`; without a view it does the
same, silently.
"""

from __future__ import annotations

import copy
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from gqc_lab.loop.curves import Curves
from gqc_lab.loop.experiment import Experiment
from gqc_lab.loop.gate import FAILED, FINISHED, PAUSED, READY, RUNNING, STOPPED, Gate, claim
from gqc_lab.loop.jupyter import Cell, current_cell
from gqc_lab.loop.openmp import release_threads
from gqc_lab.loop.own_loop import Loop, Optimizers
from gqc_lab.loop.saving import save_run
from gqc_lab.loop.track import checkpoint_path, load_checkpoint, save_checkpoint

SHORTEST = 0.1  #: seconds between two updates of the views
SHARE = 0.03  #: of the training time that updates may take, and checkpoints as much
SPEED_SECONDS = 2.0  #: over which the rate is measured

F = TypeVar("F", bound=Callable[[], object])
Listener = Callable[["Live"], None]
_END = object()
_steered: weakref.WeakKeyDictionary[Any, Live] = weakref.WeakKeyDictionary()


class Live(Gate):
    """A training that can be watched and steered.

    Args:
        what: the optimizers of a loop, or an `Experiment`, which may have begun.
        total: batches of the whole run, if known; an experiment has its own.
        state: of a loop, for checkpoints, `resume` and `reset`; see `Loop`.
        label: of a loop.
        parameters: of the notebook that built it; `save` writes them together with the changes.
        folder: for the automatic checkpoint, and for a new folder at each `save`.
        every_seconds: between two automatic checkpoints, which take at most 3 % of the time; 0: at
            every batch, whatever it takes.
        cell: whose run this is; None: the cell that is running.
    Attributes:
        experiment: what is trained.
        state: ready, running, paused, stopped, finished, failed or replaced.
        error: the traceback of what ended the run or broke a view, or None.
        curves: what there is to draw.
        statistics: those of the optimizer wrapper at the last update; empty without one.
        listeners: called with this object when there is news; one that raises is dropped.
    """

    def __init__(
        self,
        what: Optimizers | Experiment,
        total: int | None = None,
        *,
        state: Mapping[str, Any] | None = None,
        label: str = "loop",
        parameters: Mapping[str, Any] | None = None,
        folder: str | Path = "runs/live",
        every_seconds: float = 30.0,
        cell: Cell | None = None,
    ) -> None:
        super().__init__(cell)
        run = what if isinstance(what, Experiment) else Loop(what, total, state, label)
        self.experiment, self.label = run, run.label
        self.listeners: list[Listener] = []
        self._is_iterator = not isinstance(run, Loop)
        if self._is_iterator:
            self._function = self._train
        self._parameters, self._folder = dict(parameters or {}), Path(folder)
        self._beginning = copy.deepcopy(run.state_dict()) if run.parts else None
        self._every, self._saved, self._save_cost = every_seconds, time.perf_counter(), 0.0
        claim(self, self._cell)
        for each in [run, *run.tunables.optimizers] if isinstance(run, Loop) else [run]:
            if (former := _steered.get(each)) is not None:
                former.replace()
            _steered[each] = self
        self._undo = [self._cell.on_end(self._end_of_cell)] if self._cell is not None else []
        self._look()

    @property
    def loop(self) -> Loop:
        """The loop that is steered.  Raises: TypeError: it is an experiment."""
        if not isinstance(self.experiment, Loop):
            raise TypeError(f"{self.label!r} is an experiment: it records what it measures itself")
        return self.experiment

    def __repr__(self) -> str:
        return f"Live({self.label}: {self.state} after {self.experiment.microbatch} batches)"

    def _look(self) -> None:
        """Read the experiment as it is now."""
        run = self.experiment
        self.curves, self.error = Curves(run), None
        self.state = FINISHED if self._is_over() else PAUSED if run.microbatch else READY
        self._updated, self._cost = -math.inf, 0.0
        self._pace: list[tuple[float, int]] = []
        self._read()

    def _is_over(self) -> bool:
        return self.experiment.done >= self.experiment.total

    def __call__(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of ``loader``, with the views looked after in between.

        Ends early after `stop`, and at ``total``.
        """
        if not self._enter():
            return
        run = self.experiment
        own = run if isinstance(run, Loop) else None
        items = iter(run) if own is None else own.items(loader)
        while self._may_go_on():
            batch = next(items, _END)
            if batch is _END:
                if own is not None:
                    own.epoch += 1
                break
            if own is not None:
                own.begin()
            try:
                yield batch
            except GeneratorExit:  # left by `break`, or closed after it has failed
                if own is not None and self._is_inside:
                    own.end()
                raise
            if own is not None:
                own.end()
        if self._is_over():
            self.finish()

    def _enter(self) -> bool:
        """Begin, or continue after a pause; False: the run is over."""
        is_main = threading.current_thread() is threading.main_thread()
        cell = current_cell() if is_main else None
        if cell is not None and (self._cell is None or cell.turn != self._cell.turn):
            self._cell = cell
            if self.state in (STOPPED, FAILED):  # a person has run the loop again
                self._is_stopping, self.error = False, None
        if self._is_stopping or self._is_over():
            return False
        self._is_inside, self._pace = True, []
        self._loop_thread = threading.current_thread()
        if self.state != RUNNING and self._left > 0:
            self.state = RUNNING
            self._tell()
        return True

    def turn(self) -> bool:
        """End a batch and begin the next, for trainers that own the loop; False: stop training.

        Their callbacks call it before each batch, and `finish` at the end.
        """
        if not self._is_inside and not self._enter():
            return False
        self.loop.end()
        if not self._may_go_on():
            return False
        self.loop.begin()
        return True

    def look(self) -> bool:
        """Look after the views, and pause, within a batch; False: stop training."""
        return self._may_go_on(is_whole=False)

    def log(self, **metrics: Any) -> None:
        """Record numbers of this batch; after it, of the last one.  Each has a panel."""
        self.loop.log(metrics)

    def control(self, name: str, value: Any, apply: Any = None, **limits: Any) -> None:
        """Add a control of your own, read as ``live[name]``; see `Loop.control`."""
        self.loop.control(name, value, apply, **limits)

    def __getitem__(self, name: str) -> Any:
        """The value of a control in this batch."""
        return self.experiment.controls.applied[name]

    @property
    def history(self) -> pd.DataFrame:
        """A row for each batch: what was logged and measured, and changes of controls."""
        if isinstance(self.experiment, Loop):
            self.experiment.read()
        return self.experiment.history

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Controls that were changed, each with the first batch under its value."""
        return self.experiment.changes

    def replay(self, changes: Iterable[dict[str, Any]]) -> None:
        """Repeat the changes of another run, without a person."""
        self.experiment.replay(changes)

    @property
    def epoch(self) -> int:
        """How many times a loader has been gone through; where a resumed loop starts."""
        return self.loop.epoch

    def background(self, function: F) -> F:
        """Call ``function``, which loops over ``live(loader)``, in a thread.  A decorator.

        The kernel stays free, which VS Code needs to hand on what a person does.
        """
        self._function, self._is_stopping = function, False
        self.state = READY if self.state in (STOPPED, FAILED) else self.state
        self.start()
        return function

    def _train(self) -> None:
        for _ in self(()):
            pass

    def reset(self) -> None:
        """Return to where the experiment was at first, with the controls as they are set now.

        Raises: RuntimeError: a loop without ``state``.
        """
        if self._beginning is None:
            raise RuntimeError("reset: expected Live(..., state={'model': model, ...})")
        self.stop()
        values = dict(self.experiment.controls)
        self.experiment.load_state_dict(copy.deepcopy(self._beginning))
        self.experiment.controls.update(values)
        self._is_stopping, self._left = False, math.inf
        self._look()
        self._tell()

    @property
    def checkpoint(self) -> Path:
        """The file of the automatic checkpoint."""
        return checkpoint_path(self._folder, self.experiment).resolve()

    def resume(self) -> bool:
        """Load the last automatic checkpoint, if there is one; call it before the loop.

        The loop continues from there bit for bit: ``for epoch in range(live.epoch, epochs)``.

        Raises: RuntimeError: a loop without ``state``.
        """
        if self._beginning is None:
            raise RuntimeError("resume: expected Live(..., state={'model': model, ...})")
        is_resumed = load_checkpoint(self.experiment, self.checkpoint)
        self._look()
        self._tell()
        return is_resumed

    def save(self) -> Path:
        """Call `save_run` between two batches; a run that was training continues."""
        place = self._folder.resolve()
        return self.between(lambda: save_run(self.experiment, place, self._parameters))

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of the state between two batches."""
        return self.between(lambda: copy.deepcopy(self.experiment.state_dict()))

    @property
    def beginning(self) -> dict[str, Any]:
        """A copy of the state that `reset` goes back to."""
        return copy.deepcopy(self._beginning or {})

    @property
    def can_reset(self) -> bool:
        """Is there a state to return to?"""
        return self._beginning is not None

    @property
    def hint(self) -> str:
        """Say why nothing that a person does arrives, or return an empty text."""
        is_held = self._is_inside and self._loop_thread is threading.main_thread()
        if not is_held or self._cell is None or self._cell.can_pump or not self._cell.is_watched:
            return ""
        return (
            "this kernel holds back what you do here until the cell has ended; train in a function "
            "under @live.background"
        )

    @property
    def speed(self) -> float | None:
        """Units (tokens) per second over the last seconds; None while it is not known."""
        pace = self._pace
        if self.state != RUNNING or len(pace) < 2 or pace[-1][0] <= pace[0][0]:
            return None
        return (pace[-1][1] - pace[0][1]) / (pace[-1][0] - pace[0][0])

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run ends, at the present speed; None while that is not known."""
        left, speed = self.experiment.total - self.experiment.done, self.speed
        return left / speed if speed and math.isfinite(left) else None

    def _update(self, is_whole: bool) -> None:
        now = time.perf_counter()
        if self.state == RUNNING and now - self._updated >= max(SHORTEST, self._cost / SHARE):
            self._pace = [p for p in self._pace if now - p[0] < SPEED_SECONDS]
            self._pace.append((now, self.experiment.done))
            self._tell()
            self._updated = time.perf_counter()
            self._cost = self._updated - now
        wait = max(self._every, self._save_cost / SHARE) if self._every else 0
        is_due = now - self._saved >= wait
        if is_due and is_whole and self._beginning is not None and self.experiment.is_whole:
            began = time.perf_counter()
            save_checkpoint(self.experiment, self.checkpoint)
            self._saved = time.perf_counter()
            self._save_cost = self._saved - began

    def _read(self) -> None:
        run = self.experiment
        if isinstance(run, Loop):
            run.read()
            run.controls.follow(run.tunables.values())
        self.curves.read()
        optimizer = run.wrapper if isinstance(run, Loop) else run.parts.get("optimizer")
        self.statistics: dict[str, Any] = dict(getattr(optimizer, "statistics", dict)())

    def _tell(self) -> None:
        self._read()
        for listener in list(self.listeners):
            try:
                listener(self)
            except Exception as error:  # a view must not end somebody's training
                self.listeners.remove(listener)
                self.error = f"a view has failed: {error!r}"

    def _leave(self) -> None:
        if isinstance(self.experiment, Loop):
            self.experiment.end() if self.state == FINISHED else None
            self.experiment.tunables.restore()

    def replace(self) -> None:
        super().replace()
        while self._undo:
            self._undo.pop()()
        if isinstance(self.experiment, Loop):
            self.experiment.tunables.detach()
        release_threads()
