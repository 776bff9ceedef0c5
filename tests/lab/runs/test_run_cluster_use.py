"""What users of several machines need: shares, job arrays, GPUs, artifacts, merged stores."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from batch_cases import HANG, Heard, wait_for, write_notebook
from rich.console import Console

from gqc_lab.cli import main
from gqc_lab.runs import BadInput, load
from gqc_lab.runs.batch import LocalExecutor, execute_batch
from gqc_lab.runs.index import INDEX, summarize
from gqc_lab.runs.overview import print_status, statuses
from gqc_lab.runs.plan import read_batch, shard
from gqc_lab.runs.store import CorruptRun, Store, write_json

ARRAY = Path(__file__).parents[3] / "notebooks/batches/array.sh"
pytestmark = pytest.mark.timeout(HANG)


def make_batch(folder, text, *cells):
    write_notebook(folder / "n.ipynb", *cells)
    (folder / "b.yaml").write_text(f"notebook: n.ipynb\n{text}")
    return read_batch(folder / "b.yaml")


def finish(store, run, files=(), **row):
    """Store ``run`` as finished, without executing it."""
    folder = store.partial(run.id)
    (folder / "artifacts" / "deep").mkdir(parents=True)
    for name in files:
        (folder / "artifacts" / name).write_text(name)
    common = {"notebook": "n", "parameters": run.parameters}
    write_json(folder / "result.json", {"run": run.id, **common, "results": [row], "info": {}})
    record = {"id": run.id, **common, "inputs": run.inputs, "started": 0.0, "seconds": 1.0}
    store.publish(run.id, record)


def test_shares_are_the_batch(tmp_path):
    batch = make_batch(tmp_path, "seeds: 7")
    shares = [shard(batch, f"{number}/3").runs for number in (1, 2, 3)]
    assert [len(runs) for runs in shares] == [3, 2, 2]
    assert {run.id for runs in shares for run in runs} == {run.id for run in batch.runs}
    for text in ("0/3", "4/3", "3", "a/b", "1/0", "-1/3"):
        with pytest.raises(BadInput, match=r"expected i/n"):
            shard(batch, text)


@pytest.mark.slow
def test_a_job_array_saves_and_queues_again(tmp_path):
    wait = "import os, time\nopen(f'begun{seed}', 'w')\nwhile not os.path.exists('go'):"
    make_batch(tmp_path, "seeds: 3\nthreads: 1", wait + "\n    time.sleep(0.05)")
    gqc = f'exec {sys.executable} -c "from gqc_lab.cli import main; main()" "$@"'
    (tmp_path / "gqc").write_text(f"#!/bin/sh\n{gqc}\n")
    (tmp_path / "gqc").chmod(0o755)
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >> queued\n')
    (tmp_path / "scontrol").chmod(0o755)

    def start(number):
        path = f"{tmp_path}:{os.environ['PATH']}"
        job = {"PATH": path, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(number)}
        job |= {"SLURM_ARRAY_TASK_COUNT": "2"}
        command = ["bash", ARRAY, "b.yaml", "--jobs", "2"]
        return subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **job})

    process = start(1)
    wait_for(lambda: (tmp_path / "begun0").exists() and (tmp_path / "begun2").exists())
    process.send_signal(signal.SIGUSR1)
    assert process.wait(HANG) == 130
    assert (tmp_path / "queued").read_text() == "requeue 7_1\n"
    process = start(2)
    wait_for((tmp_path / "begun1").exists)
    process.send_signal(signal.SIGTERM)  # SLURM queues a preempted job again itself
    assert process.wait(HANG) == 130
    assert (tmp_path / "queued").read_text() == "requeue 7_1\n"
    store = Store(tmp_path / "runs")
    assert set(statuses(read_batch(tmp_path / "b.yaml"), store).values()) == {"interrupted"}
    (tmp_path / "go").touch()
    both = [start(1), start(2)]
    assert [process.wait(HANG) for process in both] == [0, 0]
    assert sorted(load(store.root).results["seed"]) == [0, 1, 2]


@pytest.mark.slow
def test_each_run_has_its_own_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    code = (
        "import os, time\nbegun = time.time()\ntime.sleep(0.3)\n"
        "mine = os.environ['CUDA_VISIBLE_DEVICES']\n"
        "print(mine, begun, time.time(), file=open(f'gpu{seed}', 'w'))"
    )
    batch, store = make_batch(tmp_path, "seeds: 5", code), Store(tmp_path / "runs")
    executor = LocalExecutor(threads=1, gpus=1)
    assert executor.capacity(None) == executor.capacity(8) == 2
    assert execute_batch(batch, store, Heard(), executor=executor).count("finished") == 5
    executor.close()
    seen = [path.read_text().split() for path in tmp_path.glob("gpu*")]
    for number, (gpu, begun, _) in enumerate(seen):
        assert gpu in {"GPU-a", "GPU-b"}
        together = [g for g, b, e in seen[:number] + seen[number + 1 :] if b <= begun <= e]
        assert gpu not in together
    assert LocalExecutor(threads=1, gpus=2).capacity(None) == 1
    assert LocalExecutor(threads=1, gpus=0.5).capacity(None) == 4
    with pytest.raises(BadInput, match=r"gpu: 4: this machine has 2"):
        LocalExecutor(threads=1, gpus=4)


def test_artifacts_are_kept_hashed_and_listed(tmp_path, executor):
    code = (
        "from gqc_lab import runs\nplace = runs.current_run_dir() / 'artifacts' / 'deep'\n"
        "place.mkdir(parents=True)\n(place / 'model.pt').write_bytes(b'weights')\n"
        "(place / 'link').symlink_to('/etc/passwd')\n"
        "for folder in (place, runs.current_run_dir()):\n    (folder / 'far').symlink_to('/etc')\n"
        "import os\nos.mkfifo(place / 'pipe')"
    )
    batch, store = make_batch(tmp_path, "seeds: 1", code), Store(tmp_path / "runs")
    assert execute_batch(batch, store, Heard(), executor=executor).count("finished") == 1
    (run,) = batch.runs
    kept = store.folder(run.id) / "artifacts" / "deep" / "model.pt"
    assert kept.read_bytes() == b"weights"
    names = [name for name in store.verify(run.id)["files"] if name.startswith("artifacts/")]
    assert names == ["artifacts/deep/model.pt"]
    assert not (store.folder(run.id) / "far").is_symlink()
    (kept.parent / "pipe").unlink()  # which no store can copy
    copy = Store(tmp_path / "copy")
    assert copy.adopt(store, run.id) == "copied"
    assert copy.verify(run.id)["files"] == store.verify(run.id)["files"]
    assert (copy.folder(run.id) / "artifacts" / "deep" / "far").is_symlink()
    kept.write_bytes(b"other")
    with pytest.raises(CorruptRun, match=r"artifacts/deep/model\.pt: does not match"):
        store.verify(run.id)
    assert statuses(batch, store) == {run.id: "corrupt"}


def test_stores_of_two_machines_become_one(tmp_path, monkeypatch, capsys):
    batch = make_batch(tmp_path, "seeds: 5")
    here, there = Store(tmp_path / "a"), Store(tmp_path / "b")
    same, other, mine, yours, bad = batch.runs
    for store, seconds in ((here, 1.0), (there, 2.0)):
        finish(store, same, loss=1.0, seconds=seconds)
        finish(store, other, loss=seconds, steps=3)
    finish(there, mine, loss=3.0)
    finish(here, yours, ["model.pt"], loss=4.0)
    finish(here, bad, loss=5.0)
    (here.folder(bad.id) / "result.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["gqc", "runs", "merge", str(here.root), str(there.root)])
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 1
    output = capsys.readouterr().out
    assert f"{other.id} conflict: loss\n" in output
    assert f"{bad.id} corrupt: result.json: does not match its checksum\n" in output
    assert output.endswith("1 conflict, 1 copied, 1 corrupt, 1 there already\n")
    assert there.finished() == {same.id, other.id, mine.id, yours.id}
    assert (there.folder(yours.id) / "artifacts" / "model.pt").read_text() == "model.pt"
    assert load(there.root, {"seed": other.parameters["seed"]}).results["loss"].tolist() == [2.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("seconds", "there already"),
        ("eval_seconds", "there already"),
        ("tokens_per_second", "there already"),
        ("second_moment", "conflict: second_moment"),
        ("secondary_loss", "conflict: secondary_loss"),
    ],
)
def test_merging_leaves_out_times_and_nothing_else(tmp_path, name, said):
    (run,) = make_batch(tmp_path, "seeds: 1").runs
    here, there = Store(tmp_path / "a"), Store(tmp_path / "b")
    finish(here, run, **{name: 1.0})
    finish(there, run, **{name: 999.0})
    assert here.adopt(there, run.id) == said


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"loss": [3.0, math.nan], "seconds": [7.0, 9.0]}, "there already"),
        ({"loss": [3.0, math.nan], "seconds": [1.0, 2.0]}, "there already"),
        ({"loss": [3.0, 2.0], "seconds": [1.0, 2.0]}, "conflict: history.loss"),
        ({"loss": [3.0], "seconds": [1.0]}, "conflict: history.loss"),
        ({"loss": [3.0, math.nan], "norm": [1.0, 2.0]}, "conflict: history.norm"),
        (None, "conflict: history.loss"),
    ],
)
def test_merging_compares_histories(tmp_path, theirs, said):
    (run,) = make_batch(tmp_path, "seeds: 1").runs
    here, there = Store(tmp_path / "a"), Store(tmp_path / "b")
    for store, history in (
        (here, {"loss": [3.0, math.nan], "seconds": [1.0, 2.0]}),
        (there, theirs),
    ):
        if history is not None:
            store.partial(run.id).mkdir(parents=True)
            pd.DataFrame(history).to_parquet(store.partial(run.id) / "history.parquet")
        finish(store, run, loss=1.0)
    assert here.adopt(there, run.id) == said


def show(batch, store):
    console = Console(width=300)
    with console.capture() as capture:
        print_status(batch, store, console)
    return capture.get()


def test_status_says_how_far_runs_are(tmp_path):
    batch, store = make_batch(tmp_path, "seeds: 2"), Store(tmp_path / "runs")
    (run, _) = batch.runs
    note = {"status": "running", "host": "moon", "pid": 7, "cell": 3, "attempts": 1}
    note |= {"started": time.time() - 600.0, "seconds": 599.0, "text": "train: 25%|##  | 5/20"}
    store.partial(run.id).mkdir(parents=True)
    write_json(store.partial(run.id) / "run.json", note)
    with store.lock(run.id):
        assert (
            f"{run.id} seed=0: process 7 on moon, in cell 3 after 10 min, 30 min left: train: 25%"
        ) in show(batch, store)
    assert f"{run.id} seed=0: died: process 7 on moon, in cell 3" in show(batch, store)


@pytest.mark.slow
def test_status_is_followed_until_nothing_runs(tmp_path):
    wait = "import os, sys, time\nwhile not os.path.exists('go'):\n    time.sleep(0.05)\n"
    wait += "    print('epoch: 50%|', file=sys.stderr, flush=True)"
    make_batch(tmp_path, "seeds: 1", wait)
    code = "from gqc_lab.cli import main; main()"
    command = [sys.executable, "-c", code, "batch"]
    silent = {"cwd": tmp_path, "stdout": subprocess.DEVNULL}
    runner = subprocess.Popen([*command, "run", "b.yaml"], **silent)
    batch, store = read_batch(tmp_path / "b.yaml"), Store(tmp_path / "runs")
    wait_for(lambda: "epoch: 50%" in show(batch, store))
    options = {"cwd": tmp_path, "stdout": subprocess.PIPE, "text": True}
    watcher = subprocess.Popen([*command, "status", "b.yaml", "--watch"], **options)
    (tmp_path / "go").touch()
    output, _ = watcher.communicate(timeout=HANG)
    assert (watcher.returncode, runner.wait(HANG)) == (0, 0)
    assert "1 finished" in output


def test_the_index_of_a_large_store_is_believed_while_no_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr("gqc_lab.runs.index._FEW", 2)
    monkeypatch.setattr("gqc_lab.runs.store._sync", lambda path: None)
    batch, store = make_batch(tmp_path, "seeds: 5"), Store(tmp_path / "runs")
    for run in batch.runs:
        finish(store, run, ["x"], loss=float(run.parameters["seed"]))
    read = []
    record = Store.record
    monkeypatch.setattr(Store, "record", lambda self, key: read.append(key) or record(self, key))

    def losses():
        read.clear()
        return sorted(load(store.root).results["loss"])

    assert losses() == [0, 1, 2, 3, 4]
    assert len(read) == 5
    assert losses() == [0, 1, 2, 3, 4]
    assert read == []
    first, second, third, *_ = batch.runs
    result = store.folder(first.id) / "result.json"
    good = result.read_text()
    result.write_text(good.replace("0.0", "9.0"))
    with pytest.raises(CorruptRun, match=r"result\.json: does not match"):
        losses()
    result.write_text(good)
    (store.folder(second.id) / "artifacts" / "x").write_text("y")  # is no part of the numbers
    assert losses() == [0, 1, 2, 3, 4]
    assert isinstance(summarize(store, store.finished(), is_whole=True)[second.id], CorruptRun)
    assert store.quarantine(third.id)
    assert losses() == [0, 1, 3, 4]
    for damage in (
        lambda text: text[:-9],
        lambda text: text.replace(b"4.0", b"5.0"),
        lambda _: b"",
    ):
        index = store.root / INDEX
        index.write_bytes(damage(index.read_bytes()))
        assert losses() == [0, 1, 3, 4]
        assert len(read) == 4
