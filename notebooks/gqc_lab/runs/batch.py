"""Execute the runs of a batch that are not finished yet, several at a time.

Where they are executed is behind one seam, :class:`Executor`: threads of this process
(:class:`LocalExecutor`), or the workers of a Dask cluster (:mod:`gqc_lab.runs.cluster`).
"""

import math
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from gqc_lab.errors import BadInput
from gqc_lab.runs.index import describe_damage
from gqc_lab.runs.plan import Batch, Run
from gqc_lab.runs.store import CorruptRun, Store

if TYPE_CHECKING:
    from gqc_lab.runs.execute import Execution

_BUSY_PAUSE = 1.0  # seconds before a run that another batch has in hand is tried again


class Listener(Protocol):
    """Listener for the progress of a batch."""

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


class Executor(ABC):
    """Place where runs are executed, several at a time.

    Its methods are called in one thread; what happens is put into ``_heard`` from any.
    """

    def __init__(self) -> None:
        self._heard: SimpleQueue[dict[str, Any]] = SimpleQueue()

    @abstractmethod
    def capacity(self, jobs: int | None) -> int:
        """Return how many runs to submit at a time, where the user said ``jobs`` or nothing."""

    @abstractmethod
    def submit(self, job: dict[str, Any]) -> None:
        """Start a run; see :class:`gqc_lab.runs.execute.Execution`."""

    @abstractmethod
    def stop(self, *, at_once: bool) -> None:
        """End all runs, at once or after they have saved their checkpoints."""

    @abstractmethod
    def close(self) -> None:
        """End what is left."""

    def events(self, timeout: float) -> Iterator[dict[str, Any]]:
        """What happened since the last call; waits up to ``timeout`` seconds for something."""
        with suppress(Empty):
            yield self._heard.get(timeout=timeout)
            while True:
                yield self._heard.get_nowait()


class LocalExecutor(Executor):
    """Runs on this machine, each driven by a thread of this process.

    Args:
        threads: BLAS and OpenMP threads of each run.
        is_forked: fork kernels from a process that has imported much, where the system can.
        gpus: that each run has for itself, or the share of one; without, it sees what there is.
    Raises: BadInput: this machine has not as many GPUs.
    """

    def __init__(self, threads: int, *, is_forked: bool = True, gpus: float = 0) -> None:
        super().__init__()
        self.threads, self.is_forked = threads, is_forked
        self.gpus_per_run = math.ceil(gpus)
        self._free: list[str] = []
        if gpus:
            from gqc_lab.runs.kernel import find_gpus

            self._free = find_gpus() * max(1, int(1 / gpus))
        if len(self._free) < self.gpus_per_run:
            raise BadInput(f"resources: gpu: {gpus:g}: this machine has {len(self._free)}")
        self.most_jobs = len(self._free) // max(1, self.gpus_per_run)
        self._running: list[tuple[Execution, threading.Thread]] = []

    def capacity(self, jobs: int | None) -> int:
        """Return ``jobs``, or 1, as the user's other work may need the machine; at most as many as
        have GPUs, which is also what is meant without ``jobs``."""
        return min(jobs or self.most_jobs, self.most_jobs) if self.gpus_per_run else jobs or 1

    def submit(self, job: dict[str, Any]) -> None:
        from gqc_lab.runs.kernel import preload

        if self.is_forked:
            preload(self.threads, job["has_torch"])  # meanwhile this process imports papermill
        from gqc_lab.runs.execute import Execution

        job = {**job, "threads": self.threads, "is_forked": self.is_forked}
        if self.gpus_per_run:
            job["gpus"] = [self._free.pop() for _ in range(self.gpus_per_run)]
        execution = Execution(job, self._heard.put)
        thread = threading.Thread(target=self._work, args=(execution,), daemon=True)
        thread.start()
        self._running.append((execution, thread))

    def _work(self, execution: "Execution") -> None:
        try:
            outcome = execution.run()
        except BaseException as error:
            outcome = {"status": "lost", "error": f"{type(error).__name__}: {error}"}
            raise
        finally:
            self._free += execution.job.get("gpus", [])
            self._heard.put({"event": "ended", "id": execution.job["id"], **outcome})

    def stop(self, *, at_once: bool) -> None:
        for execution, thread in self._running:
            if thread.is_alive():
                execution.stop(at_once=at_once)

    def close(self) -> None:
        self.stop(at_once=True)
        for _, thread in self._running:
            thread.join()


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_job(batch: Batch, run: Run, store: Store) -> dict[str, Any]:
    """Return all that an executor has to know to execute ``run``, as plain values."""
    return {
        "id": run.id,
        "name": batch.notebook.name,
        "notebook": str(batch.notebook.path),
        "text": batch.notebook.text,
        "parameters": run.parameters,
        "inputs": run.inputs,
        "data": batch.data,
        "folders": [str(each) for each in batch.notebook.folders],
        "runs": str(store.root),
        "timeout": batch.timeout,
        "has_torch": bool(run.inputs["source"]) or "torch" in batch.notebook.text,
    }


def set_corrupt_aside(batch: Batch, store: Store, note: Callable[[str], None]) -> Outcomes:
    """Return what is finished, all files verified, after the corrupt runs are quarantined."""
    outcomes = Outcomes({run.id: "waiting" for run in batch.runs})
    for key in sorted(store.finished() & outcomes.statuses.keys()):
        try:
            store.verify(key)
        except CorruptRun as error:
            if shelf := store.quarantine(key):
                note(f"{key} is corrupt ({error}); set aside in {shelf}, runs again")
        except OSError as error:
            outcomes.statuses[key] = "failed"
            outcomes.errors[key] = describe_damage(error)
            note(f"{key} {outcomes.errors[key]}")
        else:
            outcomes.statuses[key] = "kept"
    return outcomes


def execute_batch(
    batch: Batch,
    store: Store,
    listener: Listener,
    *,
    executor: Executor,
    jobs: int | None = None,
    retry: int = 1,
    is_fail_fast: bool = False,
) -> Outcomes:
    """Execute what is not finished; a run that fails does not stop the others.

    Ctrl-C, SIGTERM or SIGUSR1 lets running cells save their checkpoints and stops; a second one
    kills.

    Args:
        executor: where runs are executed; left open.
        jobs: runs at a time; None: what the executor can take.
        retry: how often a run that was lost (killed, no kernel) is tried again; a notebook that
            fails is not.
        is_fail_fast: stop as soon as a run has failed.
    Raises:
        BadInput: the store cannot be written to.
        gqc_lab.runs.cluster.SchedulerLost: the executor is a cluster, and out of reach.
    """
    outcomes = set_corrupt_aside(batch, store, listener.note)
    listener.kept(outcomes.count("kept"))
    todo = [(0.0, run) for run in batch.runs if outcomes.statuses[run.id] == "waiting"]
    if not todo:
        return outcomes
    store.check_writable()
    loop = _Loop(batch, store, listener, outcomes, executor, jobs, retry, is_fail_fast, todo)
    with _interrupts(loop.press):
        loop.run()
    return outcomes


def default_threads(batch: Batch, jobs: int | None) -> int:
    """Return the threads of each run: as the batch file says, or the cores shared by the jobs."""
    return batch.threads or max(1, num_cores() // (jobs or 1))


@dataclass
class _Loop:
    batch: Batch
    store: Store
    listener: Listener
    outcomes: Outcomes
    executor: Executor
    jobs: int | None
    retry: int
    is_fail_fast: bool
    waiting: list[tuple[float, Run]]  # from when on it may be started
    running: dict[str, Run] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    presses: int = 0
    is_stopping: bool = False

    def press(self) -> None:
        """Note a Ctrl-C; called in a signal handler, so the rest is left to the loop."""
        self.presses += 1
        self.is_stopping = self.outcomes.is_interrupted = True

    def run(self) -> None:
        obeyed = 0
        while self.running or (self.waiting and not self.is_stopping):
            self._fill()
            for event in self.executor.events(0.2):
                self._hear(event)
            if obeyed < self.presses:
                self.executor.stop(at_once=self.presses > 1)
                obeyed = self.presses

    def _fill(self) -> None:
        room = self.executor.capacity(self.jobs) - len(self.running)
        ready = [each for each in self.waiting if each[0] <= time.monotonic()]
        for when, run in ready[: max(0, room)]:
            if self.is_stopping:
                return
            self.waiting.remove((when, run))
            self.running[run.id] = run
            self.executor.submit(make_job(self.batch, run, self.store))

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
            self.waiting.append((time.monotonic() + _BUSY_PAUSE, run))
            if error not in self.told:
                self.listener.note(f"{run.id}: {error}; waiting for it")
                self.told.add(error)
        elif status == "lost" and self.is_stopping:
            status = "interrupted"
        elif status == "lost":
            self.attempts[run.id] = self.attempts.get(run.id, 0) + 1
            if self.attempts[run.id] <= self.retry:
                self.listener.note(f"{run.id}: {error}; trying again")
                self.waiting.append((0.0, run))
                status = "waiting"
            else:
                status = "failed"
        if status == "failed":
            self.outcomes.errors[run.id] = error
            if self.is_fail_fast or outcome.get("is_store_lost"):
                self.is_stopping = True
                self.executor.stop(at_once=False)
        self.outcomes.statuses[run.id] = "waiting" if status == "busy" else status
        self.listener.ended(run, {**outcome, "status": status})


@contextmanager
def _interrupts(press: Callable[[], None]) -> Iterator[None]:
    """Call ``press`` on SIGINT, SIGTERM and SIGUSR1; in a thread, which gets none, do nothing."""
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) if is_main else ()
    before = {each: signal.signal(each, lambda *_: press()) for each in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
