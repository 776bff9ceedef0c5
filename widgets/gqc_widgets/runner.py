"""Train an experiment in a thread, so that the kernel stays free: start, pause, step, stop, reset.

A thread exists only while the run trains: a paused run is an iterator between two records and needs
none.  Listeners are called at most ten times a second, and less often if they are slow, so that
watching takes at most 3 % of the time.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from gqc_lab import Experiment
from gqc_widgets.curves import Curves
from gqc_widgets.openmp import release_threads
from gqc_widgets.saving import save_run

READY, RUNNING, PAUSED = "ready", "running", "paused"
STOPPED, FINISHED, FAILED = "stopped", "finished", "failed"

SHORTEST = 0.1  #: seconds between two updates
SHARE = 0.03  #: of the training time that updates may take
SPEED_SECONDS = 2.0  #: over which the rate is measured

Listener = Callable[["Runner"], None]


class Runner:
    """Run one experiment in a thread.

    Args:
        experiment: any; it may have begun.
        enter: called first in each new thread (to tell Jupyter which cell its output belongs to).
    Attributes:
        state: one of the names above.
        error: the traceback of the exception that ended the run, or None.
        curves: what there is to draw.
        record: the last one, or None.
        statistics: those of the optimizer wrapper at the last update; empty without a wrapper.
        listeners: called with the runner when there is news, from the training thread or from the
            one that called a method; an exception in a listener ends the run.
    """

    def __init__(self, experiment: Experiment, enter: Callable[[], None] | None = None) -> None:
        self.experiment = experiment
        self.listeners: list[Listener] = []
        self._enter = enter
        self._beginning = copy.deepcopy(experiment.state_dict())
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._is_wanted = False
        self._look()

    def _look(self) -> None:
        """Read the experiment as it is now."""
        rows = self.experiment.history.to_dict("records")
        self.curves = Curves(self.experiment.unit, rows)  # type: ignore[arg-type]
        self.record: dict[str, Any] | None = dict(rows[-1]) if rows else None  # type: ignore[arg-type]
        self.error: str | None = None
        is_over = self.experiment.done >= self.experiment.total
        self.state = FINISHED if is_over else PAUSED if rows else READY
        self.statistics = self._read_statistics()
        self._updated, self._cost = -math.inf, 0.0
        self._pace: list[tuple[float, int]] = []

    def _read_statistics(self) -> dict[str, Any]:
        optimizer = self.experiment.parts.get("optimizer")
        statistics = getattr(optimizer, "statistics", dict)
        return dict(statistics())

    def start(self) -> None:
        """Train to the end."""
        self._go(math.inf)

    def step(self, count: int = 1) -> None:
        """Train for ``count`` microbatches, then pause."""
        self._go(count)

    def _go(self, count: float) -> None:
        if self.state == PAUSED:
            self.wait()  # for a thread that has paused and is still calling its listeners
        release_threads()
        with self._lock:
            if self.state == RUNNING:
                self._is_wanted = True  # takes back a pause that was not yet noticed
            if self.state not in (READY, PAUSED):
                return
            self.state, self._is_wanted = RUNNING, True
            self._pace = []
            self._thread = threading.Thread(
                target=self._work, args=(count,), name=f"gqc {self.experiment.label}", daemon=True
            )
            _running.add(self)
            self._thread.start()
        self._tell()

    def pause(self) -> None:
        """Pause after the current microbatch."""
        with self._lock:
            self._is_wanted = False

    def stop(self) -> None:
        """End the run for good; only `reset` starts another."""
        self.pause()
        self.wait()
        with self._lock:
            if self.state in (READY, PAUSED):
                self.state = STOPPED
        self._tell()

    def reset(self) -> None:
        """Return to where the experiment was at first, with the controls as they are set now."""
        self.pause()
        self.wait()
        with self._lock:
            values = dict(self.experiment.controls)
            self.experiment.load_state_dict(copy.deepcopy(self._beginning))
            self.experiment.controls.update(values)
            self._look()
        self._tell()

    def save(self, folder: str | Path, parameters: Mapping[str, Any]) -> Path:
        """Call `save_run` between two microbatches; a run that was training continues."""
        with self._held():
            return save_run(self.experiment, folder, parameters)

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of the state of the experiment between two microbatches."""
        with self._held():
            return copy.deepcopy(self.experiment.state_dict())

    @property
    def beginning(self) -> dict[str, Any]:
        """A copy of the state that `reset` goes back to."""
        return copy.deepcopy(self._beginning)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        was_running = self.state == RUNNING
        self.pause()
        self.wait()
        try:
            yield
        finally:
            if was_running:
                self.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to ``timeout`` seconds for the thread to end; returns whether it has."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

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
        return left / speed if speed else None

    def _work(self, count: float) -> None:
        try:
            if self._enter is not None:
                self._enter()
            self._train(count)
        except Exception:
            self._end(FAILED, traceback.format_exc())
        finally:
            _running.discard(self)
        try:
            self._tell()
        except Exception:  # a view is broken: keeping its error is all that can be done
            self._end(FAILED, traceback.format_exc())

    def _train(self, count: float) -> None:
        while True:
            with self._lock:
                if not self._is_wanted or count <= 0:
                    self.state = PAUSED
                    return
            record = next(self.experiment, None)
            if record is None:
                self._end(FINISHED)
                return
            count -= 1
            self.record = record
            self.curves.add(record)
            self._update()
            if self.experiment.done >= self.experiment.total:
                self._end(FINISHED)
                return

    def _update(self) -> None:
        now = time.perf_counter()
        if now - self._updated < max(SHORTEST, self._cost / SHARE):
            return
        self._pace = [p for p in self._pace if now - p[0] < SPEED_SECONDS]
        self._pace.append((now, self.experiment.done))
        self._tell()
        self._updated = time.perf_counter()
        self._cost = self._updated - now

    def _end(self, state: str, error: str | None = None) -> None:
        with self._lock:
            self.state, self.error = state, error

    def _tell(self) -> None:
        self.statistics = self._read_statistics()
        for listener in list(self.listeners):
            listener(self)


class Stoppable(Protocol):
    """A `Runner`, or an object that holds several."""

    listeners: list[Any]

    def stop(self) -> None: ...


_running: set[Runner] = set()
_owners: dict[str, tuple[object, list[Stoppable]]] = {}


def claim(runner: Stoppable, owner: str, turn: object) -> None:
    """Stop what ``owner`` ran in earlier turns: running a cell again leaves no thread behind.

    Args:
        runner: what this turn runs.
        owner: the cell.
        turn: its execution; several runners of one turn run side by side.
    """
    before, runners = _owners.get(owner, (turn, []))
    if before != turn:
        for former in runners:
            former.listeners.clear()
            former.stop()
        runners = []
    _owners[owner] = (turn, [*runners, runner])


@atexit.register
def stop_all() -> None:
    """Stop every run: Python would otherwise end a thread in the middle of a torch call."""
    for runner in list(_running):
        runner.listeners.clear()
        runner.stop()
