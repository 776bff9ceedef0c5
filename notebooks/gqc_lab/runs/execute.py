"""Execute the runs of a batch that are not finished yet, several at a time."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from gqc_lab.runs.plan import Batch, Run
from gqc_lab.runs.store import CorruptRun, Store
from gqc_lab.runs.worker import Executor, Worker, make_job, num_cores

_BUSY_PAUSE = 1.0  # seconds before a run that another batch has in hand is tried again


class Listener(Protocol):
    """Who shows the progress."""

    def note(self, text: str) -> None: ...
    def kept(self, count: int) -> None: ...
    def started(self, run: Run) -> None: ...
    def moved(self, run: Run, cell: int, text: str) -> None: ...
    def ended(self, run: Run, outcome: dict[str, Any]) -> None: ...


@dataclass
class Outcomes:
    """What became of a batch's runs, by id: kept, finished, failed, interrupted, waiting."""

    statuses: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    is_interrupted: bool = False

    def count(self, status: str) -> int:
        return sum(each == status for each in self.statuses.values())


def set_corrupt_aside(batch: Batch, store: Store, note: Callable[[str], None]) -> set[str]:
    """Ids of the batch's finished runs, all their files verified; corrupt ones are quarantined."""
    stored = store.finished()
    finished = set()
    for run in batch.runs:
        if run.id in stored:
            try:
                store.verify(run.id)
            except CorruptRun as error:
                shelf = store.quarantine(run.id)
                note(f"{run.id} is corrupt ({error}); set aside in {shelf}, runs again")
            else:
                finished.add(run.id)
    return finished


def execute_batch(
    batch: Batch,
    store: Store,
    listener: Listener,
    *,
    jobs: int | None = None,
    retry: int = 1,
    is_fail_fast: bool = False,
    is_warm: bool = True,
    worker: Executor | None = None,
) -> Outcomes:
    """Execute what is not finished; a run that fails does not stop the others.

    Ctrl-C or SIGTERM lets running cells save their checkpoints and stops; a second one kills.

    Args:
        jobs: runs at a time; None: what the worker can take.
        retry: how often a run that was lost (killed, no kernel) is tried again; a notebook that
            fails is not.
        is_fail_fast: stop as soon as a run has failed.
        is_warm: fork kernels from a process with torch loaded, where the system can.
        worker: where runs are executed, left running; None: a warm process of this machine.
    Raises: gqc_lab.runs.cluster.SchedulerLost: the worker is a cluster, and out of reach.
    """
    finished = set_corrupt_aside(batch, store, listener.note)
    outcomes = Outcomes({run.id: "waiting" for run in batch.runs})
    outcomes.statuses |= dict.fromkeys(finished, "kept")
    listener.kept(len(finished))
    todo = [run for run in batch.runs if run.id not in finished]
    if not todo:
        return outcomes
    own = worker or Worker(batch.threads or max(1, num_cores() // (jobs or 1)))
    loop = _Loop(batch, store, listener, outcomes, own, jobs, retry, is_fail_fast, is_warm)
    try:
        with _interrupts(loop.press):
            loop.run(todo)
    finally:
        if worker is None:
            own.close()
    return outcomes


@dataclass
class _Loop:
    batch: Batch
    store: Store
    listener: Listener
    outcomes: Outcomes
    worker: Executor
    jobs: int | None
    retry: int
    is_fail_fast: bool
    is_warm: bool
    waiting: deque[Run] = field(default_factory=deque)
    running: dict[str, Run] = field(default_factory=dict)
    later: list[tuple[float, Run]] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    presses: int = 0
    is_stopping: bool = False

    def press(self) -> None:
        self.presses += 1
        self.is_stopping = self.outcomes.is_interrupted = True
        for key in self.running:
            if self.presses == 1:
                self.worker.interrupt(key)
            else:
                self.worker.kill(key)

    def run(self, todo: list[Run]) -> None:
        self.waiting.extend(todo)
        while self.running or (self._has_more() and not self.is_stopping):
            self._fill()
            for event in self.worker.events(0.2 if self.running else 0.0):
                self._hear(event)
            if not self.running and not self.waiting and self.later and not self.is_stopping:
                time.sleep(0.1)

    def _has_more(self) -> bool:
        return bool(self.waiting or self.later)

    def _fill(self) -> None:
        now = time.monotonic()
        self.waiting.extend(run for when, run in self.later if when <= now)
        self.later = [(when, run) for when, run in self.later if when > now]
        limit = self.jobs or self.worker.capacity()
        while self.waiting and len(self.running) < limit and not self.is_stopping:
            run = self.waiting.popleft()
            self.running[run.id] = run
            self.worker.submit(make_job(self.batch, run, self.store, is_warm=self.is_warm))

    def _hear(self, event: dict[str, Any]) -> None:
        run = self.running.get(event.get("id", ""))
        if run is None:
            return
        if event["event"] == "started":
            self.listener.started(run)
        elif event["event"] == "cell":
            self.listener.moved(run, event["cell"], event["text"])
        elif event["event"] == "ended":
            del self.running[run.id]
            self._settle(run, event)

    def _settle(self, run: Run, outcome: dict[str, Any]) -> None:
        status, error = outcome["status"], outcome.get("error", "")
        if status == "busy":
            self.later.append((time.monotonic() + _BUSY_PAUSE, run))
        elif status == "lost" and self.is_stopping:
            status = "interrupted"
        elif status == "lost":
            self.attempts[run.id] = self.attempts.get(run.id, 0) + 1
            if self.attempts[run.id] <= self.retry:
                self.listener.note(f"{run.id}: {error}; trying again")
                self.waiting.append(run)
                status = "waiting"
            else:
                status = "failed"
        if status == "failed":
            self.outcomes.errors[run.id] = error
            if self.is_fail_fast:
                self._stop_all()
        self.outcomes.statuses[run.id] = "waiting" if status == "busy" else status
        self.listener.ended(run, {**outcome, "status": status})

    def _stop_all(self) -> None:
        self.is_stopping = True
        for key in self.running:
            self.worker.interrupt(key)


@contextmanager
def _interrupts(press: Callable[[], None]) -> Iterator[None]:
    """Call ``press`` on SIGINT and SIGTERM; in a thread, which gets no signals, do nothing."""

    def handle(number: int, frame: FrameType | None) -> None:
        press()

    try:
        before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
