"""Kills at random moments, of runs, kernels, warm processes and batches: nothing is lost, nothing
counted twice, and the numbers are those of an undisturbed batch."""

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

from gqc.lab.runs import load
from gqc.lab.runs.plan import read_batch
from gqc.lab.runs.store import Store

NOTEBOOK = Path(__file__).parents[2] / "fixtures" / "notebooks" / "counting.ipynb"
NUM_RUNS, GOAL, NUM_KILLS = 30, 12, 10


def chain(seed):
    """What the counting notebook computes: each link depends on all before it."""
    value = ""
    for count in range(1, GOAL + 1):
        value = hashlib.sha256(f"{seed} {count} {value}".encode()).hexdigest()
    return value


def children(pid):
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


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


def start(tmp_path):
    code = "from gqc.cli import main; main()"
    command = ["batch", "run", "b.yaml", "--jobs", "2", "--retry", "5"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *command],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def strike(stream, batch):
    """Kill one of: the batch, its warm process, a run, a kernel; returns which."""
    warm = children(batch)
    runs = [run for server in warm for run in children(server)]
    kernels = [kernel for run in runs for kernel in children(run)]
    kind, targets = stream.choice(
        [("batch", [batch]), ("warm", warm), ("run", runs), ("run", runs), ("kernel", kernels)]
    )
    if not targets or not runs:  # nothing is running yet
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(stream.choice(targets), signal.SIGKILL)
    return kind


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds its victims in /proc")
def test_random_kills_lose_and_repeat_nothing(tmp_path):
    (tmp_path / "b.yaml").write_text(
        f"notebook: {NOTEBOOK}\nseeds: {NUM_RUNS}\nparameters: {{goal: {GOAL}}}\nthreads: 1\n"
    )
    ids = {run.id for run in read_batch(tmp_path / "b.yaml").runs}
    store, stream = Store(tmp_path / "runs"), random.Random(8)
    kills, published = [], {}
    process = start(tmp_path)
    until = time.monotonic() + 240
    while True:
        assert time.monotonic() < until, kills
        time.sleep(stream.uniform(0.1, 1.2))
        if process.poll() is not None:
            process.communicate()
            if process.returncode == 0:
                break
            process = start(tmp_path)
        elif len(kills) < NUM_KILLS and (kind := strike(stream, process.pid)):
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
    # Only what was struck was started again: a kill of a batch or warm process strikes two runs.
    attempts = [json.loads((store.folder(k) / "run.json").read_text())["attempts"] for k in ids]
    assert sum(attempts) - NUM_RUNS <= 2 * NUM_KILLS
    # Whoever was killed took its runs and kernels along.
    assert processes_of(store) == []
    left = list((store.root / "partial").iterdir())
    assert [path for path in left if path.is_dir()] == []
