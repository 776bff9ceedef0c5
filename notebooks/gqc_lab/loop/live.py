"""Steer a training while it runs: a loop of your own, ``for batch in live(loader)``, or a study's.

Whoever edits, in whatever thread, only leaves a wish; the loop meets it between two batches, and
every change is recorded with its batch.  `gqc_widgets` shows a `Live`; without a view it does the
same, silently.
"""

import copy
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from gqc_lab.loop import checkpoints, gate
from gqc_lab.loop.curves import Curves
from gqc_lab.loop.experiment import Experiment
from gqc_lab.loop.jupyter import PUMP_SECONDS, Cell, current_cell
from gqc_lab.loop.openmp import release_threads
from gqc_lab.loop.own_loop import Loop
from gqc_lab.loop.tunables import Optimizers, named

SHORTEST = 0.1  #: seconds between two updates of the views
SHARE = 0.01  #: of the training time that updates may take, and checkpoints as much
SPEED_SECONDS = 2.0  #: over which the rate is measured

F = TypeVar("F", bound=Callable[[], object])
Listener = Callable[["Live"], None]
_END = object()
#: what is trained -> the last `Live` that steers it
steered: weakref.WeakKeyDictionary[Any, "Live"] = weakref.WeakKeyDictionary()


class Live(gate.Gate):
    """A training that can be watched and steered.

    Args:
        what: the optimizers of a loop, or an `Experiment`, which may have begun.
        total: batches of the whole run, if known; an experiment has its own.
        state: of a loop, for checkpoints, `resume` and `reset`; see `Loop`.
        label: of a loop, and of its files: runs that differ by a seed alone need one each.
        parameters: of the notebook that built it; `save` writes them together with the changes.
        folder: for the automatic checkpoint, and for a new folder at each `save`.
        every_seconds: between two automatic checkpoints, which take at most 1 % of the time; 0: at
            every batch, whatever it takes.
        cell: whose run this is; None: the cell that is running.
    Attributes:
        experiment: what is trained.
        state: ready, running, paused, stopped, finished, failed or replaced.
        error: the traceback of what ended the run, broke a view or a checkpoint, or None.
        curves: what there is to draw.
        statistics: those of the wrapper at the last update, of several each under its name.
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
        trained: list[Any] = [what] if isinstance(what, Experiment) else [*named(what).values()]
        for former in [steered[each] for each in trained if each in steered]:
            former.replace()  # before anything is read
        run = what if isinstance(what, Experiment) else Loop(what, total, state, label)
        self.experiment, self.label = run, run.label
        self.listeners: list[Listener] = []
        self._own = run if isinstance(run, Loop) else None
        if self._own is None:
            self._is_iterator, self._function = True, lambda: all(True for _ in self(()))
        self._parameters, self._folder = dict(parameters or {}), Path(folder)
        self._beginning = copy.deepcopy(run.state_dict()) if run.parts else {}
        if run.parts:
            checkpoints.check_readable(self._beginning)
        self._every = every_seconds
        self._save_at = time.perf_counter() + every_seconds if run.parts else math.inf
        gate.claim(self, self._cell)
        steered.update(dict.fromkeys([run, *trained], self))
        self._undo = [self._cell.on_end(self._end_of_cell)] if self._cell is not None else []
        self._look()

    @property
    def loop(self) -> Loop:
        """The loop that is steered.  Raises: TypeError: it is an experiment."""
        if self._own is None:
            raise TypeError(f"{self.label!r} is an experiment: it records what it measures itself")
        return self._own

    @property
    def optimizer(self) -> Any:
        """The first gqc wrapper of a loop, or None; the optimizer of an experiment."""
        return self._own.wrapper if self._own else self.experiment.parts.get("optimizer")

    def __repr__(self) -> str:
        return f"Live({self.label}: {self.state} after {self.experiment.microbatch} batches)"

    def _look(self) -> None:
        run = self.experiment
        self.curves, self.error = Curves(run), None
        self.state = gate.PAUSED if run.microbatch else gate.READY
        self.state = gate.FINISHED if self._is_over() else self.state
        self._due = self._next = -math.inf
        self._pace: list[tuple[float, int]] = []
        self._tell()

    def _is_over(self) -> bool:
        return self.experiment.done >= self.experiment.total

    def __call__(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of ``loader``, with the views looked after in between.

        Ends early after `stop`, and at ``total``.  Raises: RuntimeError: within a batch of another.
        """
        if self._is_inside and self._own and not self._own.is_whole:
            raise RuntimeError(
                "live() within a batch of live(): use live(zip(a, b)) or a plain loop"
            )
        if not self._enter():
            return
        items = self._own.items(loader) if self._own else self.experiment
        while self._may_go_on() and (batch := next(items, _END)) is not _END:
            if self._own is None:
                yield batch
                continue
            self._own.begin()
            is_whole = False
            try:
                yield batch
                is_whole = True
            finally:  # also where the loop is left by `break`
                if self._is_inside:
                    self._own.end(is_whole)
        if self._is_over():
            self.finish()

    def _enter(self) -> bool:
        """Begin, or continue after a pause; False: the run is over."""
        cell = current_cell() if threading.current_thread() is threading.main_thread() else None
        if cell is not None and (self._cell is None or cell.turn != self._cell.turn):
            self._cell, self._due = cell, -math.inf
            if self.state in (gate.STOPPED, gate.FAILED):  # a person has run the loop again
                self._is_stopping, self.error = False, None
        if self._is_stopping or self._is_over():
            return False
        self._is_inside, self._pace = True, []
        self._loop_thread = threading.current_thread()
        if self.state != gate.RUNNING and self._left > 0:
            self.state = gate.RUNNING
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
        self.between(self._tell)

    def __getitem__(self, name: str) -> Any:
        """The value of a control in this batch."""
        return self.experiment.controls.applied[name]

    @property
    def history(self) -> pd.DataFrame:
        """A row for each batch: what was logged and measured, and changes of controls."""
        return self.experiment.history

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Controls that were changed, each with the first batch under its value."""
        return self.experiment.changes

    def replay(self, changes: Iterable[dict[str, Any]]) -> None:
        """Repeat the changes of another run, without a person."""
        self.between(lambda: self.experiment.replay(changes))

    @property
    def epoch(self) -> int:
        """How many times a loader has been gone through; where a resumed loop starts."""
        return self.loop.epoch

    def background(self, function: F) -> F:
        """Call ``function``, which loops over ``live(loader)``, in a thread.  A decorator.

        The kernel stays free, which VS Code needs to hand on what a person does.  Where nobody is
        there, as under papermill, it waits for the end.

        Raises: RuntimeError: the function has failed where nobody is there.
        """
        self._function, self._is_stopping = function, False
        if self.state in (gate.STOPPED, gate.FAILED, gate.FINISHED) and not self._is_over():
            self.state = gate.READY
        self.start()
        if self._cell is not None and not self._cell.is_watched:
            self.wait()
            if self.state == gate.FAILED:
                raise RuntimeError(self.error)
        return function

    def reset(self) -> None:
        """Return to where the experiment was at first, with what was set in the controls since.

        A loader's own generator goes on.  Raises: RuntimeError: a loop without ``state``.
        """
        self._check_state("reset")
        if self._thread is not None:
            self.stop()
        self.between(self._return)

    def _return(self) -> None:
        controls, chosen = self.experiment.controls, self.experiment.controls.chosen
        self.experiment.load_state_dict(self.beginning)
        controls.update({n: v for n, v in chosen.items() if v != controls[n]})
        self._is_stopping, self._left = False, math.inf
        self._look()

    @property
    def checkpoint(self) -> Path:
        """The file of the automatic checkpoint."""
        return checkpoints.checkpoint_path(self._folder, self.experiment).resolve()

    def resume(self) -> bool:
        """Load the last automatic checkpoint and say so, if there is one; call it before the loop.

        The loop continues from there bit for bit: ``for epoch in range(live.epoch, epochs)``.
        ``enumerate(live(loader))`` counts from 0; one that accumulates was saved after a step.

        Raises: RuntimeError: a loop without ``state``.
        """
        self._check_state("resume")
        if is_resumed := checkpoints.resume(self.experiment, self.checkpoint):
            self._look()
        return is_resumed

    def save(self) -> Path:
        """Call `save_run` between two batches; a run that was training continues."""
        place = self._folder.resolve()
        return self.between(lambda: checkpoints.save_run(self.experiment, place, self._parameters))

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of the state between two batches."""
        return self.between(lambda: copy.deepcopy(self.experiment.state_dict()))

    @property
    def beginning(self) -> dict[str, Any]:
        """A copy of the state that `reset` goes back to; empty for a loop without ``state``."""
        return copy.deepcopy(self._beginning)

    def _check_state(self, name: str) -> None:
        if not self._beginning:
            raise RuntimeError(f"{name}: expected Live(..., state={{'model': model, ...}})")

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
        if self.state != gate.RUNNING or len(pace) < 2 or pace[-1][0] <= pace[0][0]:
            return None
        return (pace[-1][1] - pace[0][1]) / (pace[-1][0] - pace[0][0])

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run ends, at the present speed; None while that is not known."""
        left, speed = self.experiment.total - self.experiment.done, self.speed
        return left / speed if speed and math.isfinite(left) else None

    def _update(self, is_whole: bool) -> None:
        now = time.perf_counter()
        if self.state == gate.RUNNING and now >= self._next:
            recent = [p for p in self._pace if now - p[0] < SPEED_SECONDS] or self._pace[-1:]
            self._pace = [*recent, (now, self.experiment.done)]
            self._tell()
            spent = time.perf_counter() - now
            self._next = now + spent + max(SHORTEST, spent / SHARE)
        if now >= self._save_at and is_whole and self.experiment.is_settled:
            now = time.perf_counter()
            self.error = checkpoints.try_to_save(self.experiment, self.checkpoint) or self.error
            spent = time.perf_counter() - now
            self._save_at = now + spent + (max(self._every, spent / SHARE) if self._every else 0)
        self._due = min(self._next, self._save_at, now + PUMP_SECONDS if self._cell else math.inf)

    def _read(self) -> None:
        if self._own:
            self._own.follow()
        self.curves.read()
        source = self._own or self.optimizer
        self.statistics: dict[str, Any] = dict(getattr(source, "statistics", dict)())

    def _tell(self) -> None:
        self._read()
        for listener in list(self.listeners):
            try:
                listener(self)
            except Exception as error:  # a view must not end somebody's training
                self.listeners.remove(listener)
                self.error = f"a view has failed: {error!r}"

    def _leave(self) -> None:
        if self._own:
            self._own.end() if self.state == gate.FINISHED else None
            self._own.tunables.restore()

    def _retire(self) -> None:
        super()._retire()
        while self._undo:
            self._undo.pop()()
        if self._own:
            self._own.tunables.detach()
        release_threads()
