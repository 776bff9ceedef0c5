"""Runs on a Dask cluster: any scheduler by its address, or workers on this machine.

Dask does the scheduling; the plan, the ids and the store are those of a local batch, and a task
executes its run as a thread of a local batch does.  Every machine needs the same gqc and sees the
run store and the notebook at the same path.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from distributed import Client, Future, LocalCluster, Security, get_worker
from distributed.comm import connect as open_connection
from distributed.core import Status

from gqc_lab.errors import BadInput
from gqc_lab.runs.batch import Executor, default_threads, num_cores
from gqc_lab.runs.execute import Execution
from gqc_lab.runs.plan import Batch
from gqc_lab.runs.sources import differing
from gqc_lab.runs.store import RECORD, Store, read_note

CONNECT_SECONDS = 4.0
_REFRESH_SECONDS = 2.0  # between looks at how large the cluster is
_running: set[Execution] = set()  # of this Dask worker


class SchedulerLost(ConnectionError):
    """The connection to the Dask scheduler broke; what runs there is interrupted."""


def connect(
    scheduler: str,
    batch: Batch,
    store: Store,
    note: Callable[[str], None],
    jobs: int | None = None,
    *,
    is_forked: bool = True,
) -> "DaskExecutor":
    """Connect to a cluster and make sure that its workers can work for ``batch``.

    Args:
        scheduler: address such as ``tcp://host:8786``, or ``local`` for Dask workers, ``jobs`` of
            them or one per core, that are started here.
        note: told the dashboard's address, and what is being waited for.
    Raises: BadInput: no scheduler answers, or a worker does not see the store.
    """
    if scheduler != "local" and "://" not in scheduler:
        raise BadInput(f"--scheduler {scheduler}: expected tcp://host:port, or local")
    cluster, threads = None, batch.threads or 1
    if scheduler == "local":
        jobs = jobs or num_cores()
        threads = default_threads(batch, jobs)
        cluster = _start_local(jobs, batch.resources)
    else:
        _knock(scheduler)
    client = Client(cluster or scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    settings = {"threads": threads, "is_forked": is_forked}
    executor = DaskExecutor(client, batch, store, settings)
    try:
        executor.prepare(note)
    except BaseException:
        executor.close()
        raise
    return executor


def _knock(scheduler: str) -> None:
    """Raises: BadInput: what is at the address is no Dask scheduler.

    A client would wait for ever where another server listens.
    """

    async def knock() -> None:
        options = Security().get_connection_args("client")
        # Dask's own time limit does not count the wait for a greeting.
        async with asyncio.timeout(CONNECT_SECONDS + 0.5):
            comm = await open_connection(scheduler, timeout=CONNECT_SECONDS, **options)
            await comm.close()

    try:
        asyncio.run(knock())
    except Exception as error:  # another server's answer is read as anything
        why = " ".join(str(error).split()) or type(error).__name__
        limit = f"within {CONNECT_SECONDS:g} s"
        raise BadInput(
            f"--scheduler {scheduler}: no Dask scheduler answered {limit} ({why})"
        ) from None


def _start_local(num_workers: int, resources: dict[str, float]) -> LocalCluster:
    return LocalCluster(
        n_workers=num_workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=0,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        resources=resources or None,
        security=Security.temporary(),  # else any user of this machine could run code as this one
        protocol="tls://",
        # A terminal sends Ctrl-C to all processes of the group; only the batch is to hear it.
        preload=["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
        silence_logs=logging.CRITICAL,  # what becomes of a run is an event; the rest is noise
    )


class DaskExecutor(Executor):
    """Runs as tasks of a Dask cluster.

    Args:
        client: connected; its cluster, if it has one of its own, is closed with the rest.
        settings: added to each job.
    """

    def __init__(
        self, client: Client, batch: Batch, store: Store, settings: dict[str, Any]
    ) -> None:
        super().__init__()
        self.client, self.batch = client, batch
        self.topic = f"gqc-{uuid4().hex}"
        self.probe = store.root / f".{self.topic}"
        self.settings = {**settings, "topic": self.topic, "probe": str(self.probe)}
        self._futures: dict[str, Future] = {}  # by run
        self._started: set[str] = set()
        self._senders: list[threading.Thread] = []
        self._num_threads, self._looked = 0, -_REFRESH_SECONDS

    def prepare(self, note: Callable[[str], None]) -> None:
        """Look at the workers.  Raises: BadInput: one of them cannot work for this batch."""
        self.write_probe()
        info = self.client.scheduler_info()
        if "dashboard" in info["services"]:
            note(f"Dask dashboard: {self.client.dashboard_link}")
        folders = [str(each) for each in self.batch.notebook.folders]
        sources = self.batch.runs[0].inputs["source"]
        try:
            problems = self.client.run(find_problem, str(self.probe), folders, sources)
        except (ImportError, AttributeError, KeyError) as error:
            raise BadInput(f"a Dask worker cannot load gqc ({error}); install it there") from None
        for address, problem in problems.items():
            if problem:
                raise BadInput(f"Dask worker {address} {problem}")
        self.client.subscribe_topic(self.topic, lambda event: self._heard.put(event[1]))
        needed = self.batch.resources
        offers = [each.get("resources", {}) for each in info["workers"].values()]
        if not any(all(o.get(k, 0) >= v for k, v in needed.items()) for o in offers):
            what = "".join(f" with {k}={v:g}" for k, v in needed.items())
            note(f"waiting for a Dask worker{what}: none of the {len(offers)} workers will do")

    def write_probe(self) -> None:
        """Leave a file in the store, for the workers to look for."""
        self.probe.parent.mkdir(parents=True, exist_ok=True)
        self.probe.write_text("seen by Dask workers that share this store\n", encoding="utf-8")

    def capacity(self, jobs: int | None) -> int:
        """Return ``jobs``, or two runs for each thread, so that no worker waits and a cluster that
        adapts its size sees more to do."""
        if jobs is not None:
            return jobs
        if time.monotonic() - self._looked > _REFRESH_SECONDS:
            self._check()
            self._looked = time.monotonic()
            self._num_threads = self.client.scheduler_info(n_workers=0)["total_threads"]
        return 2 * max(1, self._num_threads)

    def submit(self, job: dict[str, Any]) -> None:
        self._check()
        key, submission = job["id"], uuid4().hex
        future = self.client.submit(
            run_job,
            {**job, **self.settings, "submission": submission},
            key=f"{job['name']}-{key}-{submission[:8]}",
            pure=False,
            resources=self.batch.resources or None,
        )
        self._futures[key] = future
        future.add_done_callback(partial(self._done, key))

    def _done(self, key: str, future: Future) -> None:
        """Called in a thread of Dask's."""
        if future.status == "finished":
            outcome = future.result()
        else:
            why = "cancelled" if future.cancelled() else future.exception()
            outcome = {"status": "lost", "error": f"Dask gave the run up: {why}"}
        self._heard.put({"event": "ended", "id": key, **outcome})

    def stop(self, *, at_once: bool) -> None:
        # In a thread: a worker that does not answer must not hold the batch up.
        sender = threading.Thread(target=self._send, args=(at_once,), daemon=True)
        sender.start()
        self._senders.append(sender)
        for key, future in self._futures.items():
            if at_once or key not in self._started:
                future.cancel()

    def _send(self, at_once: bool) -> None:
        with contextlib.suppress(OSError):  # a worker that is gone needs no order
            self.client.run(stop_runs, self.topic, at_once, on_error="ignore")

    def events(self, timeout: float) -> Iterator[dict[str, Any]]:
        """Raises: SchedulerLost: there is no connection any more."""
        for event in super().events(timeout):
            if event["event"] == "started":
                self._started.add(event["id"])
            elif event["event"] == "ended":
                self._futures.pop(event["id"], None)
                self._started.discard(event["id"])
                self._check()  # else a broken connection looks like lost runs
            yield event
        self._check()

    def _check(self) -> None:
        if self.client.status != "running":
            raise SchedulerLost(
                "the connection to the Dask scheduler broke; the same command goes on from here"
            )

    def close(self) -> None:
        for sender in self._senders:
            sender.join(CONNECT_SECONDS)
        if self.client.status == "running":
            self.client.cancel(list(self._futures.values()))
        self.probe.unlink(missing_ok=True)
        self.client.close()
        if self.client.cluster is not None:
            self.client.cluster.close()


def find_problem(probe: str, folders: list[str], sources: dict[str, str]) -> str:
    """Return what keeps this Dask worker from working for the batch, or nothing.

    Args:
        probe: a file in the run store; a worker that cannot see it does not share the store.
    """
    store = Path(probe).parent
    if not Path(probe).is_file():
        return (
            f"cannot see the run store {store}; Dask workers and the batch need one shared "
            "file system: name a folder on it with --runs"
        )
    if not os.access(store, os.W_OK):
        return f"may not write to the run store {store}"
    for folder in folders:
        if not Path(folder).is_dir():
            return f"cannot see the notebook's folder {folder}, which has to be shared too"
    if changed := differing(sources, [Path(each) for each in folders]):
        shown = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        return f"has another version of {shown}; install the same gqc on every machine"
    return ""


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Execute one run; the Dask task.

    Dask repeats the task when its worker is lost.  Whether and how often to try again is the
    batch's to say (``--retry``), so the repetition only reports the loss.
    """
    worker = get_worker()
    if problem := find_problem(job["probe"], job["folders"], job["inputs"]["source"]):
        return {"status": "lost", "error": f"Dask worker {worker.address} {problem}"}
    note = read_note(Store(job["runs"]).partial(job["id"]) / RECORD)
    if note.get("submission") == job["submission"]:  # it was started before
        return {"status": "lost", "error": "the Dask worker that had the run was lost"}
    execution = Execution(job, lambda event: worker.log_event(job["topic"], event))
    is_over = threading.Event()
    arguments = (execution, is_over, worker, worker.get_current_task())
    threading.Thread(target=_watch, args=arguments, daemon=True).start()
    _running.add(execution)
    try:
        return execution.run()
    finally:
        is_over.set()
        _running.remove(execution)


def _watch(execution: Execution, is_over: threading.Event, worker: Any, task: str) -> None:
    """Interrupt a run that nobody waits for any more, or whose Dask worker is to end."""
    while not is_over.wait(0.5):
        state = worker.state.tasks.get(task)
        if state is None or state.state == "cancelled" or worker.status != Status.running:
            execution.stop()
            return


def stop_runs(topic: str, at_once: bool) -> None:
    """Stop the runs of a batch on this Dask worker; for `Client.run`."""
    for execution in list(_running):
        if execution.job["topic"] == topic:
            execution.stop(at_once=at_once)
