"""Kills at random moments, of kernels, fork servers, Dask workers and batches: nothing is
lost, nothing counted twice, and the numbers are those of an undisturbed batch."""

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
NUM_RUNS, GOAL, NUM_KILLS = 30, 12, 10
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
    return subprocess.Popen(
        [sys.executable, "-c", code, *command],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def below(parents):
    return [child for parent in parents for child in children(parent)]


def strike(stream, batch, nannies=None):
    """Kill one of: the batch, a Dask worker, a fork server, a kernel; returns which.

    Args:
        nannies: parents of the Dask workers; None: there are none.
    """
    workers = [p for p in below(nannies or []) if "multiprocessing.spawn" in command_of(p)]
    servers = [p for p in below(workers or [batch]) if "forkserver" in command_of(p)]
    kernels = below(servers)
    victims = [("batch", [batch]), ("server", servers), *[("kernel", kernels)] * 3]
    victims += [("worker", workers)] * 2 if nannies else []
    kind, targets = stream.choice(victims)
    if not targets or not kernels:  # nothing is running yet
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(stream.choice(targets), signal.SIGKILL)
    return kind


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture(params=["here", "dask"])
def place(request):
    """Options that say where the batch is to run, and the nannies of the Dask workers there."""
    if request.param == "here":
        yield [], None
        return
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0"]
    command += ["--host", "127.0.0.1", "--no-dashboard"]
    scheduler = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    address = next(line.split()[-1] for line in scheduler.stderr if "Scheduler at:" in line)
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard"]
    nannies = [
        subprocess.Popen([*command, "--nthreads", "1"], stderr=subprocess.DEVNULL) for _ in "ab"
    ]
    yield ["--scheduler", address], [nanny.pid for nanny in nannies]
    for process in (*nannies, scheduler):
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(HANG)
@pytest.mark.skipif(sys.platform != "linux", reason="finds its victims in /proc")
def test_random_kills_lose_and_repeat_nothing(tmp_path, place):
    where, nannies = place
    (tmp_path / "b.yaml").write_text(
        f"notebook: {NOTEBOOK}\nseeds: {NUM_RUNS}\nparameters: {{goal: {GOAL}}}\nthreads: 1\n"
    )
    ids = {run.id for run in read_batch(tmp_path / "b.yaml").runs}
    store, stream = Store(tmp_path / "runs"), random.Random(8)
    kills, published = [], {}
    process = start(tmp_path, *where)
    until = time.monotonic() + HANG
    while True:
        assert time.monotonic() < until, kills
        time.sleep(stream.uniform(0.1, 1.2))
        if process.poll() is not None:
            process.communicate()
            if process.returncode == 0:
                break
            process = start(tmp_path, *where)
        elif len(kills) < NUM_KILLS and (kind := strike(stream, process.pid, nannies)):
            kills.append(kind)
        for key in store.finished() - published.keys():
            published[key] = store.verify(key)["started"]

    assert len(kills) == NUM_KILLS
    assert len(set(kills)) >= 3, kills  # with this seed: all kinds but perhaps one
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
    assert sum(attempts) - NUM_RUNS <= 2 * NUM_KILLS
    # Whoever was killed took its runs and kernels along.
    while processes_of(store):
        assert time.monotonic() < until
        time.sleep(0.05)
    left = list((store.root / "partial").iterdir())
    assert [path for path in left if path.is_dir()] == []
