"""Runs on a Dask cluster: any scheduler by its address, or workers on this machine.

Dask does the scheduling; the plan, the ids and the store are those of a local batch, and so is
what happens to a run (:mod:`gqc_lab.runs.seat`).  Every machine needs the same gqc and sees the
run store and the notebook at the same path.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

from distributed import Client, Future, LocalCluster, Security
from distributed.comm import connect as open_connection

from gqc_lab.errors import BadInput
from gqc_lab.runs.plan import Batch
from gqc_lab.runs.seat import Seat, find_problem, obey, run_job
from gqc_lab.runs.store import Store
from gqc_lab.runs.worker import num_cores

CONNECT_SECONDS = 4.0
_REFRESH_SECONDS = 2.0  # between looks at how large the cluster is


class SchedulerLost(ConnectionError):
    """The connection to the Dask scheduler broke; what runs there is interrupted."""


def connect(
    scheduler: str,
    batch: Batch,
    store: Store,
    note: Callable[[str], None],
    jobs: int | None = None,
) -> DaskWorker:
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
        threads = batch.threads or max(1, num_cores() // jobs)
        cluster = _start_local(jobs, batch.resources)
    else:
        _knock(scheduler)
    client = Client(cluster or scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    worker = DaskWorker(client, cluster, batch, store, threads)
    try:
        worker.prepare(note)
    except BaseException:
        worker.close()
        raise
    return worker


def _knock(scheduler: str) -> None:
    """Raises: BadInput: what is at the address is no Dask scheduler.

    A client that fails to connect would hold the exit up for ten seconds; this leaves nothing.
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
        # A terminal sends Ctrl-C to all processes of the group; only the batch is to hear it.
        preload=["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
        silence_logs=logging.CRITICAL,  # what becomes of a run is an event; the rest is noise
    )


class DaskWorker:
    """A cluster with the seam of :class:`gqc_lab.runs.worker.Worker`.

    Orders may come from a signal handler, so they are only noted there; :meth:`events`, which the
    batch calls several times a second, sends them.

    Args:
        client: connected.
        cluster: closed with the rest; None: somebody else's.
        threads: BLAS and OpenMP threads of each run.
    """

    def __init__(
        self,
        client: Client,
        cluster: LocalCluster | None,
        batch: Batch,
        store: Store,
        threads: int,
    ) -> None:
        self.client, self.cluster, self.batch = client, cluster, batch
        self.threads = threads
        self.name = f"gqc-{uuid4().hex}"
        self.probe = store.root / f".{self.name}"
        self._futures: dict[str, tuple[str, Future]] = {}  # by run: submission, future
        self._started: set[str] = set()
        self._heard: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._orders: deque[tuple[str, str]] = deque()
        self._senders: list[threading.Thread] = []
        self._num_threads, self._looked = 0, -_REFRESH_SECONDS

    def prepare(self, note: Callable[[str], None]) -> None:
        """Set the workers up.  Raises: BadInput: one of them cannot work for this batch."""
        self.write_probe()
        info = self.client.scheduler_info()
        if "dashboard" in info["services"]:
            note(f"Dask dashboard: {self.client.dashboard_link}")
        notebook = self.batch.notebook.path
        sources = self.batch.runs[0].inputs["source"]
        try:
            self.client.register_plugin(
                Seat(str(self.probe), str(notebook.parent), sources), name=self.name
            )
            problems = self.client.run(find_problem, self.name)
        except (ImportError, AttributeError, KeyError) as error:
            raise BadInput(f"a Dask worker cannot load gqc ({error}); install it there") from None
        for address, problem in problems.items():
            if problem:
                raise BadInput(f"Dask worker {address} {problem}")
        self.client.subscribe_topic(self.name, lambda event: self._heard.put(event[1]))
        needed = self.batch.resources
        offers = [each.get("resources", {}) for each in info["workers"].values()]
        if not any(all(o.get(k, 0) >= v for k, v in needed.items()) for o in offers):
            what = "".join(f" with {k}={v:g}" for k, v in needed.items())
            note(f"waiting for a Dask worker{what}: none of the {len(offers)} workers will do")

    def write_probe(self) -> None:
        """Leave a file in the store, for the workers to look for."""
        self.probe.parent.mkdir(parents=True, exist_ok=True)
        self.probe.write_text("seen by Dask workers that share this store\n", encoding="utf-8")

    def capacity(self) -> int:
        """Runs that are worth submitting now: a second for each thread, so that no worker waits
        and a cluster that adapts its size sees more to do."""
        if time.monotonic() - self._looked > _REFRESH_SECONDS:
            self._check()
            self._looked = time.monotonic()
            self._num_threads = self.client.scheduler_info(n_workers=0)["total_threads"]
        return 2 * max(1, self._num_threads)

    def submit(self, job: dict[str, Any]) -> None:
        """Hand a run to the cluster."""
        self._check()
        key, submission = job["id"], uuid4().hex
        future = self.client.submit(
            run_job,
            {**job, "submission": submission, "threads": self.threads},
            self.name,
            key=f"{job['name']}-{key}-{submission[:8]}",
            pure=False,
            resources=self.batch.resources or None,
        )
        self._futures[key] = (submission, future)
        future.add_done_callback(partial(self._done, key))

    def _done(self, key: str, future: Future) -> None:
        """Called in a thread of Dask's."""
        if future.status == "finished":
            outcome = future.result()
        else:
            why = "cancelled" if future.cancelled() else future.exception()
            outcome = {"status": "lost", "error": f"Dask gave the run up: {why}"}
        self._heard.put({"event": "ended", "id": key, **outcome})

    def interrupt(self, key: str) -> None:
        """Let a run save its checkpoint and end."""
        self._orders.append(("interrupt", key))

    def kill(self, key: str) -> None:
        self._orders.append(("kill", key))

    def _send_orders(self) -> None:
        together: dict[str, list[str]] = {}
        while self._orders:
            order, key = self._orders.popleft()
            if key in self._futures:
                together.setdefault(order, []).append(key)
        for order, keys in together.items():
            submissions = [self._futures[key][0] for key in keys]
            # In a thread: a worker that does not answer must not hold the batch up.
            arguments = (obey, self.name, order, submissions)
            sender = threading.Thread(
                target=self.client.run, args=arguments, kwargs={"on_error": "ignore"}, daemon=True
            )
            sender.start()
            self._senders.append(sender)
            for key in keys:
                if order == "kill" or key not in self._started:
                    self._futures[key][1].cancel()

    def events(self, timeout: float) -> Iterator[dict[str, Any]]:
        """What happened since the last call; waits up to ``timeout`` seconds for something.

        Raises: SchedulerLost: there is no connection any more.
        """
        self._send_orders()
        try:
            event = self._heard.get(timeout=timeout) if timeout else self._heard.get_nowait()
            while True:
                if event["event"] == "started":
                    self._started.add(event["id"])
                elif event["event"] == "ended":
                    self._futures.pop(event["id"], None)
                    self._started.discard(event["id"])
                    self._check()  # else a broken connection looks like lost runs
                yield event
                event = self._heard.get_nowait()
        except Empty:
            self._check()

    def _check(self) -> None:
        if self.client.status != "running":
            raise SchedulerLost(
                "the connection to the Dask scheduler broke; the same command goes on from here"
            )

    def close(self) -> None:
        """Let go of the cluster, or end it if it is of this batch."""
        for sender in self._senders:
            sender.join(CONNECT_SECONDS)
        if self.client.status == "running":
            self.client.cancel([future for _, future in self._futures.values()])
            self.client.unregister_worker_plugin(self.name)
        self.probe.unlink(missing_ok=True)
        self.client.close()
        if self.cluster is not None:
            self.cluster.close()
