"""A Dask worker's end of a batch: each run a subprocess, from a warm process of its own.

A plugin (:class:`Seat`) gives every worker of the cluster, present and future, a place where it
keeps warm processes (:class:`gqc_lab.runs.worker.Worker`) while the batch lasts; the task
:func:`run_job` borrows one, and returns the run's outcome.  All of them die with the Dask worker.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

from distributed import WorkerPlugin, get_worker

from gqc_lab.runs.sources import differing
from gqc_lab.runs.store import RECORD, Store
from gqc_lab.runs.worker import Worker

_IDLE_SECONDS = 60.0  # before an unused warm process ends, should the batch have been killed


class Seat(WorkerPlugin):
    """What a Dask worker keeps for one batch.

    Args:
        probe: a file in the run store; a worker that cannot see it does not share the store.
        folder: of the notebook, which the runs are to see.
        sources: hash of each module of gqc that the notebook uses, by name.
    """

    def __init__(self, probe: str, folder: str, sources: dict[str, str]) -> None:
        self.probe, self.folder, self.sources = probe, folder, sources

    def setup(self, worker: Any) -> None:
        """Look around.  What is wrong is kept for who asks: raising would end the Dask worker."""
        self.problem = self._find_problem()
        self.lock = threading.Lock()
        self.idle: list[Worker] = []
        self.running: dict[str, tuple[str, Worker]] = {}  # by submission: run and its process
        self.stopped: set[str] = set()
        self.is_closing = False
        self.timer: threading.Timer | None = None

    def _find_problem(self) -> str:
        store = Path(self.probe).parent
        if not Path(self.probe).is_file():
            return (
                f"cannot see the run store {store}; Dask workers and the batch need one shared "
                "file system: name a folder on it with --runs"
            )
        if not os.access(store, os.W_OK):
            return f"may not write to the run store {store}"
        if not Path(self.folder).is_dir():
            return f"cannot see the notebook's folder {self.folder}, which has to be shared too"
        if changed := differing(self.sources, Path(self.folder)):
            shown = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
            return f"has another version of {shown}; install the same gqc on every machine"
        return ""

    def teardown(self, worker: Any) -> None:
        """Let runs save their checkpoints; the threads that wait for them end the processes."""
        with self.lock:
            self.is_closing = True
            submissions = set(self.running)
        self.obey("interrupt", submissions)
        self.close_idle()

    def obey(self, order: str, submissions: Collection[str]) -> None:
        """Interrupt or kill runs, those that are still to start included."""
        with self.lock:
            self.stopped.update(submissions)
            targets = [self.running[s] for s in submissions if s in self.running]
        for key, process in targets:
            getattr(process, order)(key)

    def close_idle(self) -> None:
        """End the warm processes that have no run."""
        with self.lock:
            idle, self.idle = self.idle, []
        for process in idle:
            process.close()

    def run(
        self,
        job: dict[str, Any],
        emit: Callable[[dict[str, Any]], None],
        is_wanted: Callable[[], bool],
    ) -> dict[str, Any]:
        """Execute a run in this thread's own warm process; returns its outcome.

        Args:
            job: as for :meth:`Worker.submit`, with ``submission`` and ``threads``.
            emit: called with the events on the way.
            is_wanted: asked now and then; a run that nobody waits for is interrupted.
        """
        submission = job["submission"]
        with self.lock:
            if self.is_closing or submission in self.stopped:
                return {"status": "interrupted"}
            if self.timer is not None:
                self.timer.cancel()
            process = self.idle.pop() if self.idle else Worker(job["threads"])
            self.running[submission] = (job["id"], process)
            process.submit(job)
        try:
            return self._follow(process, job["id"], emit, is_wanted)
        finally:
            self._put_back(submission, process)

    def _follow(
        self,
        process: Worker,
        key: str,
        emit: Callable[[dict[str, Any]], None],
        is_wanted: Callable[[], bool],
    ) -> dict[str, Any]:
        is_interrupted = False
        while True:
            for event in process.events(0.5):
                if event["event"] == "ended":
                    return {k: v for k, v in event.items() if k not in {"event", "id"}}
                if "id" in event:
                    emit(event)
            if not is_interrupted and not is_wanted():
                is_interrupted = True
                process.interrupt(key)

    def _put_back(self, submission: str, process: Worker) -> None:
        with self.lock:
            del self.running[submission]
            is_closing = self.is_closing
            if not is_closing:
                self.idle.append(process)
                self.timer = threading.Timer(_IDLE_SECONDS, self.close_idle)
                self.timer.daemon = True
                self.timer.start()
        if is_closing:
            process.close()


def run_job(job: dict[str, Any], name: str) -> dict[str, Any]:
    """The Dask task of one run.

    Dask repeats the task when its worker is lost.  Whether and how often to try again is the
    batch's to say (``--retry``), so the repetition only reports the loss.

    Args:
        job: as for :meth:`Seat.run`.
        name: of the batch's :class:`Seat`, and of the topic that its events go to.
    """
    worker = get_worker()
    seat = cast(Seat, worker.plugins[name])
    if seat.problem:
        return {"status": "lost", "error": f"Dask worker {worker.address} {seat.problem}"}
    if _began(job):
        return {"status": "lost", "error": "the Dask worker that had the run was lost"}
    task = worker.get_current_task()

    def is_wanted() -> bool:
        state = worker.state.tasks.get(task)
        return state is not None and state.state != "cancelled"

    return seat.run(job, lambda event: worker.log_event(name, event), is_wanted)


def _began(job: dict[str, Any]) -> bool:
    """Whether this very submission was started before."""
    path = Store(job["runs"]).partial(job["id"]) / RECORD
    try:
        return bool(json.loads(path.read_bytes()).get("submission") == job["submission"])
    except (OSError, ValueError):
        return False


def find_problem(name: str, dask_worker: Any = None) -> str:
    """For ``Client.run``: what keeps this Dask worker from working for the batch, or nothing."""
    seat: Seat = dask_worker.plugins[name]
    return seat.problem


def obey(name: str, order: str, submissions: list[str], dask_worker: Any = None) -> None:
    """For ``Client.run``: see :meth:`Seat.obey`."""
    dask_worker.plugins[name].obey(order, submissions)
