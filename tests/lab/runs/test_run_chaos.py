"""Kills at random moments, of kernels, fork servers, Dask workers, schedulers and batches; stopped
kernels, a store that workers lose sight of: nothing is lost, nothing counted twice, and the numbers
are those of an undisturbed batch."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gqc_lab.runs import load
from gqc_lab.runs.plan import read_batch
from gqc_lab.runs.store import Store

NOTEBOOK = Path(__file__).parents[2] / "fixtures" / "notebooks" / "counting.ipynb"
NUM_RUNS = int(os.environ.get("GQC_CHAOS", "24"))  # 60 now and then
GOAL, NUM_STRIKES = 12, NUM_RUNS // 4
HANG = 1800  # seconds after which something hangs, however busy the machine is


def chain(seed):
    """What the counting notebook computes: each link depends on all before it."""
    value = ""
    for count in range(1, GOAL + 1):
        value = hashlib.sha256(f"{seed} {count} {value}".encode()).hexdigest()
    return value


def children(pid):
    """Of all threads of the process."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in path.read_text().split()]
    return found


def processes_of(store):
    """Ids of processes whose environment or command names the store."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environ = (folder / "environ").read_bytes()
                links = [os.readlink(link) for link in (folder / "fd").iterdir()]
            except OSError:
                continue
            text = environ.decode(errors="replace") + " ".join(links)
            if str(store.root) in text and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def start(tmp_path, *where):
    code = "from gqc_lab.cli import main; main()"
    command = ["batch", "run", "b.yaml", "--jobs", "2", "--retry", "5", *where]
    with open(tmp_path / "output.txt", "a") as output:  # a pipe that nobody reads would fill up
        return subprocess.Popen(
            [sys.executable, "-c", code, *command],
            cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def below(parents):
    return [child for parent in parents for child in children(parent)]


def strike(stream, batch, store, cluster, done):
    """Kill one of: the batch, a Dask worker, the scheduler, a fork server, a kernel; or stop a
    kernel, or hide the store from the workers: what is rarest in `done`, at random among equals.
    Returns what was done, or None."""
    nannies = cluster.nannies if cluster else []
    workers = [p for p in below(nannies) if "multiprocessing.spawn" in command_of(p)]
    servers = [p for p in below(workers or [batch]) if "forkserver" in command_of(p)]
    kernels = below(servers)
    victims = {"batch": [batch], "server": servers, "kernel": kernels, "stop": kernels}
    if cluster:
        victims |= {"worker": workers, "scheduler": [cluster.scheduler.pid]}
        victims |= {"store": list(store.root.glob(".gqc-*"))}
    if not kernels:  # nothing is running yet
        return None
    there = [kind for kind, targets in victims.items() if targets]
    kind = min(there, key=lambda kind: (done.count(kind), stream.random()))
    target = stream.choice(victims[kind])
    if kind == "store":
        target.unlink(missing_ok=True)
        return kind
    with contextlib.suppress(ProcessLookupError):
        os.kill(target, signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
    return kind


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


class Cluster:
    """A scheduler and two workers, which :meth:`options` starts where they died."""

    scheduler = None

    def options(self):
        """Return what tells a batch to run there."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            self.close()
            command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0"]
            command += ["--host", "127.0.0.1", "--no-dashboard"]
            self.scheduler = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            lines = self.scheduler.stderr
            self.address = next(line.split()[-1] for line in lines if "Scheduler at:" in line)
            command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address]
            command += ["--no-dashboard", "--nthreads", "1"]
            self.processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in "ab"]
            self.nannies = [process.pid for process in self.processes]
        return ["--scheduler", self.address]

    def close(self):
        for process in (*self.processes, self.scheduler) if self.scheduler else ():
            for child in below([process.pid]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            process.kill()
            process.communicate()


@pytest.fixture(params=["here", pytest.param("dask", marks=pytest.mark.cluster)])
def cluster(request):
    cluster = Cluster() if request.param == "dask" else None
    yield cluster
    if cluster:
        cluster.close()


@pytest.mark.slow
@pytest.mark.timeout(HANG)
@pytest.mark.skipif(sys.platform != "linux", reason="finds its victims in /proc")
def test_random_strikes_lose_and_repeat_nothing(tmp_path, cluster):
    (tmp_path / "b.yaml").write_text(
        f"notebook: {NOTEBOOK}\nseeds: {NUM_RUNS}\nparameters: {{goal: {GOAL}}}\nthreads: 1\n"
        "timeout: 60\n"  # of a stopped kernel
    )
    ids = {run.id for run in read_batch(tmp_path / "b.yaml").runs}
    store, stream = Store(tmp_path / "runs"), random.Random(8)
    strikes, published, process = [], {}, None
    until = time.monotonic() + HANG
    while True:
        assert time.monotonic() < until, strikes
        if process is None or process.poll() is not None:
            if process is not None and process.returncode == 0:
                break
            process = start(tmp_path, *(cluster.options() if cluster else []))
        time.sleep(stream.uniform(0.1, 1.2))
        if len(strikes) < NUM_STRIKES and process.poll() is None:
            strikes += filter(None, [strike(stream, process.pid, store, cluster, strikes)])
        for key in store.finished() - published.keys():
            published[key] = store.verify(key)["started"]

    assert len(strikes) == NUM_STRIKES
    assert len(set(strikes)) >= 3, strikes
    assert store.finished() == ids
    # What was published once was never made again.
    assert {key: store.verify(key)["started"] for key in published} == published
    rows = load(store.root).results
    assert sorted(rows["seed"]) == list(range(NUM_RUNS))
    assert dict(zip(rows["seed"], rows["chain"], strict=True)) == {
        seed: chain(seed) for seed in range(NUM_RUNS)
    }
    # Only what was struck was started again: a kill strikes two runs, or one.
    attempts = [json.loads((store.folder(k) / "run.json").read_text())["attempts"] for k in ids]
    assert sum(attempts) - NUM_RUNS <= 2 * NUM_STRIKES
    # Whoever was killed took its runs and kernels along.
    while processes_of(store):
        assert time.monotonic() < until
        time.sleep(0.05)
    left = list((store.root / "partial").iterdir())
    assert [path for path in left if path.is_dir()] == []
