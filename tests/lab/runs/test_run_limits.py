"""Numbers that are not finite, stores that cannot be written, processes that cells leave behind."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from batch_cases import HANG, Heard, wait_for, write_notebook
from rich.console import Console

from gqc_lab.runs import BadInput, load
from gqc_lab.runs.batch import execute_batch
from gqc_lab.runs.overview import print_status
from gqc_lab.runs.plan import read_batch
from gqc_lab.runs.store import Store

pytestmark = [pytest.mark.timeout(HANG), pytest.mark.slow]


def make_batch(folder, text, *cells):
    write_notebook(folder / "n.ipynb", *cells)
    (folder / "b.yaml").write_text(f"notebook: n.ipynb\n{text}")
    return read_batch(folder / "b.yaml")


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


def test_every_file_of_a_run_is_strict_json(tmp_path, executor):
    save = "from gqc_lab import runs\nnan = float('nan')\nruns.save(None, {'a': limit, 'b': nan})"
    cells = ["assert seed == 0, 'broken on purpose'", save]
    write_notebook(tmp_path / "n.ipynb", *cells)
    text = (tmp_path / "n.ipynb").read_text()
    (tmp_path / "n.ipynb").write_text(text.replace("seed = 0", r"seed = 0\nlimit = 1.0", 1))
    (tmp_path / "b.yaml").write_text("notebook: n.ipynb\nseeds: 2\nparameters: {limit: .inf}")
    batch, store = read_batch(tmp_path / "b.yaml"), Store(tmp_path / "runs")
    outcomes = execute_batch(batch, store, Heard(), executor=executor)
    assert list(outcomes.statuses.values()) == ["finished", "failed"]
    good, bad = batch.runs
    for folder in (store.folder(good.id), store.failed(bad.id)):
        for path in (each for each in folder.iterdir() if each.suffix in {".json", ".ipynb"}):
            json.loads(path.read_text(), parse_constant=refuse)
    notebook = json.loads((store.failed(bad.id) / "notebook.ipynb").read_text())
    assert notebook["metadata"]["papermill"]["parameters"]["limit"] == float("inf")
    assert store.verify(good.id)["parameters"]["limit"] == float("inf")
    assert load(store.root).results["limit"].tolist() == [float("inf")]


def test_what_a_cell_started_ends_with_its_run(tmp_path, executor):
    code = (
        "import os, signal, subprocess\n"
        "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "print(child.pid, file=open(f'{seed}.pid', 'w'))"
    )
    die = "if seed == 1: os.kill(os.getpid(), signal.SIGKILL)"
    batch, store = make_batch(tmp_path, "seeds: 2", code, die), Store(tmp_path / "runs")
    outcomes = execute_batch(batch, store, Heard(), retry=0, executor=executor)
    assert list(outcomes.statuses.values()) == ["finished", "failed"]
    for seed in (0, 1):
        pid = int((tmp_path / f"{seed}.pid").read_text())
        wait_for(lambda pid=pid: not is_alive(pid))


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_status_tells_what_died_from_what_was_interrupted(tmp_path, executor):
    code = "import os, signal, time\nopen(f'{seed}', 'w')"
    wait = "if seed == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(1000 * (seed == 2))"
    batch, store = make_batch(tmp_path, "seeds: 3", code, wait), Store(tmp_path / "runs")

    class Pressing(Heard):
        def moved(self, run, cell, text):
            if run.parameters["seed"] == 2 and (tmp_path / "2").exists():
                os.kill(os.getpid(), signal.SIGINT)

    outcomes = execute_batch(batch, store, Pressing(), retry=0, executor=executor)
    assert list(outcomes.statuses.values()) == ["finished", "failed", "interrupted"]
    console = Console(width=200)
    with console.capture() as capture:
        assert print_status(batch, store, console) == 1
    assert "1 finished" in capture.get()
    assert "1 died" in capture.get()
    assert "1 interrupted" in capture.get()
    assert f"{batch.runs[1].id} seed=1: died: process {os.getpid()} on " in capture.get()


def test_a_store_that_cannot_be_written_is_one_line(tmp_path, executor):
    batch = make_batch(tmp_path, "seeds: 2")
    with pytest.raises(BadInput, match="cannot write to the run store /proc/gqc"):
        execute_batch(batch, Store("/proc/gqc"), Heard(), executor=executor)


def test_a_full_disk_stops_the_batch(tmp_path, executor, monkeypatch):
    batch, store = make_batch(tmp_path, "seeds: 4"), Store(tmp_path / "runs")
    sync, calls = os.fsync, []

    def fill_up(descriptor):
        calls.append(descriptor)
        if len(calls) > 8:  # in the middle of the second run
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    outcomes = execute_batch(batch, store, Heard(), executor=executor)
    assert list(outcomes.statuses.values()) == ["finished", "failed", "waiting", "waiting"]
    assert "No space left on device" in outcomes.errors[batch.runs[1].id]
    monkeypatch.undo()
    outcomes = execute_batch(batch, store, Heard(), executor=executor)
    assert list(outcomes.statuses.values()) == ["kept", "finished", "finished", "finished"]
    assert Path(store.root / "partial").is_dir()


def test_the_current_folder_is_not_imported_from_and_a_killed_batch_leaves_no_sockets(tmp_path):
    make_batch(tmp_path, "seeds: 1", "import time\nopen('begun', 'w')\ntime.sleep(1000)")
    (tmp_path / "papermill.py").write_text("open('stolen', 'w')")
    temporary = Path(tempfile.mkdtemp())  # short, as paths of sockets have to be

    def start():
        code = "from gqc_lab.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, "batch", "run", "b.yaml"],
            cwd=tmp_path, env={**os.environ, "TMPDIR": str(temporary)},
        )  # fmt: skip

    process = start()
    wait_for((tmp_path / "begun").exists)
    assert not (tmp_path / "stolen").exists()
    process.kill()
    process.wait()
    (left,) = temporary.glob("gqc-sockets-*")
    os.utime(left, (0, 0))
    (tmp_path / "begun").unlink()
    process = start()
    wait_for((tmp_path / "begun").exists)
    assert left not in set(temporary.glob("gqc-sockets-*"))
    process.send_signal(signal.SIGINT)
    assert process.wait(HANG) == 130
    assert list(temporary.iterdir()) == []
    temporary.rmdir()


def test_an_interrupt_as_a_large_notebook_starts_is_heard(tmp_path, executor):
    code = f"x = '{'a' * 5_000_000}'", "import time\ntime.sleep(1000)"
    batch, store = make_batch(tmp_path, "seeds: 2", *code), Store(tmp_path / "runs")

    class Pressing(Heard):
        def started(self, run):
            os.kill(os.getpid(), signal.SIGINT)

    outcomes = execute_batch(batch, store, Pressing(), jobs=1, executor=executor)
    assert outcomes.is_interrupted
    assert list(outcomes.statuses.values()) == ["interrupted", "waiting"]


def test_a_clock_that_is_set_back_makes_no_negative_times(tmp_path, executor, monkeypatch):
    batch, store = make_batch(tmp_path, "seeds: 1", "1"), Store(tmp_path / "runs")
    past = itertools.count(2e9, -3600)
    monkeypatch.setattr("gqc_lab.runs.execute.time.time", lambda: next(past))
    execute_batch(batch, store, Heard(), executor=executor)
    monkeypatch.undo()
    assert 0 < store.verify(batch.runs[0].id)["seconds"] < HANG


def test_a_long_path_of_temporary_files_is_not_used_for_sockets(tmp_path):
    make_batch(tmp_path, "seeds: 1", "1")
    long = tmp_path / ("x" * 60)
    long.mkdir()
    code = "from gqc_lab.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "batch", "run", "b.yaml"],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(long)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 finished" in done.stdout


def test_what_a_cell_prints_is_bounded(tmp_path, executor):
    code = (
        "import sys\nfor _ in range(200):\n    print('x' * 1_000_000)\n"
        "for step in range(1000):\n    print(f'\\rstep {step}', end='', file=sys.stderr)"
    )
    cell = "print('y' * 3_000_000, file=sys.stderr)"
    batch = make_batch(tmp_path, "seeds: 1", code, cell, "print('short')")
    store = Store(tmp_path / "runs")
    assert execute_batch(batch, store, Heard(), executor=executor).count("finished") == 1
    path = store.folder(batch.runs[0].id) / "notebook.ipynb"
    assert path.stat().st_size < 2_100_000
    cells = json.loads(path.read_text())["cells"]
    printed = (out for cell in cells for out in cell["outputs"] if out["output_type"] == "stream")
    texts = ["".join(out["text"]) for out in printed]
    assert texts[-1] == "short\n"
    long = "".join(texts[:-1])
    assert (long.count("x"), long.count("y")) == (1_000_000, 1_000_000)
    assert "[cut: stdout of this cell is longer than 1,000,000 characters]" in long
    assert "[cut: stderr of this cell is longer than 1,000,000 characters]" in long
    assert "step" not in long
