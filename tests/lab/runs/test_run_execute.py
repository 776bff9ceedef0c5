"""Batches that run, fail, are killed, interrupted and damaged."""

import contextlib
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from batch_cases import HANG, Heard, wait_for, write_notebook

from gqc_lab.runs import load
from gqc_lab.runs.batch import LocalExecutor, execute_batch, make_job
from gqc_lab.runs.execute import Execution
from gqc_lab.runs.store import Store

NOTEBOOKS = Path(__file__).parents[2] / "fixtures" / "notebooks"
pytestmark = [pytest.mark.timeout(HANG), pytest.mark.slow]


def numbers(store):
    """What must not depend on how a batch was disturbed."""
    loaded = load(store.root)
    return loaded.results.drop(columns="run").to_dict("records")


def test_a_batch_runs_once_keeps_what_failed_and_mends_what_broke(make_batch, tmp_path, executor):
    store = Store(tmp_path / "runs")
    batch = make_batch("grid: {method: [plain, broken, double]}\nthreads: 1")
    plain, broken, double = batch.runs
    outcomes = execute_batch(batch, store, Heard(), jobs=2, executor=executor)
    assert outcomes.statuses == {
        plain.id: "finished", broken.id: "failed", double.id: "finished",
    }  # fmt: skip
    assert "ValueError: this method is broken on purpose" in outcomes.errors[broken.id]

    # The failed run's notebook shows how far it came; its traceback is beside it.
    trace = (store.failed(broken.id) / "traceback.txt").read_text()
    assert "raise ValueError" in trace
    assert "\x1b" not in trace
    failed = json.loads((store.failed(broken.id) / "notebook.ipynb").read_text())
    assert any(out["output_type"] == "error" for cell in failed["cells"]
               for out in cell.get("outputs", []))  # fmt: skip

    # The finished one is complete, and says what it depended on.
    record = store.verify(double.id)
    assert record["parameters"]["method"] == "double"
    assert record["environment"]["threads"] == 1
    executed = json.loads((store.folder(double.id) / "notebook.ipynb").read_text())
    assert executed["metadata"]["papermill"]["input_path"] == str(batch.notebook.path)
    loaded = load(store.root)
    assert set(loaded.results["run"]) == {plain.id, double.id}
    ratio = loaded.results.set_index("method")["loss"]
    assert ratio["double"] == 2 * ratio["plain"]  # exact: the fixture doubles each loss
    assert len(loaded.history) == 6

    # Again: only the failed one runs; a damaged one is set aside and made anew, the same.
    good = numbers(store)
    result = store.folder(plain.id) / "result.json"
    result.write_text(result.read_text()[:-20])
    heard = Heard()
    outcomes = execute_batch(batch, store, heard, jobs=2, executor=executor)
    assert outcomes.statuses[double.id] == "kept"
    assert heard.num_kept == 1
    assert outcomes.statuses[plain.id] == "finished"
    assert any(plain.id in note and "result.json" in note for note in heard.notes)
    (shelf,) = (store.root / "quarantine").glob(f"{plain.id}-*")
    assert any(str(shelf) in note for note in heard.notes)
    assert sorted(map(str, numbers(store))) == sorted(map(str, good))


def test_nothing_starts_when_all_is_finished(make_batch, tmp_path, executor, monkeypatch):
    store = Store(tmp_path / "runs")
    batch = make_batch("seeds: 1")
    execute_batch(batch, store, Heard(), executor=executor)
    monkeypatch.setattr(executor, "submit", pytest.fail)
    outcomes = execute_batch(batch, store, Heard(), executor=executor)
    assert outcomes.statuses == {batch.runs[0].id: "kept"}


def by_seed(row):
    return row["seed"]


def test_a_forked_kernel_is_like_one_from_scratch(make_batch, tmp_path, executor):
    """The fixture reports what a notebook can see of its surroundings, and uses DataLoaders."""
    batch = make_batch("seeds: 2", "surroundings")
    forked, cold = Store(tmp_path / "forked"), Store(tmp_path / "cold")
    execute_batch(batch, forked, Heard(), executor=executor)
    execute_batch(batch, cold, Heard(), executor=LocalExecutor(threads=1, is_forked=False))
    like, unlike = sorted(numbers(forked), key=by_seed), sorted(numbers(cold), key=by_seed)
    draws = [draw for row in like + unlike for draw in row.pop("draws")]
    assert len(set(draws)) == 3 * 4  # random, numpy, torch: nobody shares a global stream
    assert like == unlike
    assert like[0]["loaded"] == [0, 1, 4, 9]


def test_killed_runs_are_tried_again_from_their_checkpoint(make_batch, tmp_path, executor):
    store = Store(tmp_path / "runs")
    batch = make_batch("seeds: 1\nparameters: {goal: 60}", "counting")
    killed = []

    def kill_once(run):
        if not killed and (state := counted(store, run.id)) and state["count"] >= 5:
            killed.append(json.loads((store.partial(run.id) / "run.json").read_text())["kernel"])
            os.kill(killed[0], signal.SIGKILL)

    heard = Watching(kill_once, batch.runs[0])
    outcomes = execute_batch(batch, store, heard, executor=executor)
    assert killed
    assert outcomes.count("finished") == 1
    assert "was killed by signal 9; trying again" in heard.notes[0]
    (row,) = numbers(store)
    assert (row["count"], row["starts"]) == (60, 2)


def counted(store, key):
    """The state that the counting notebook has saved so far, or None."""
    try:
        return json.loads((store.partial(key) / "counting.ckpt").read_text())
    except FileNotFoundError:
        return None


class Watching(Heard):
    """Calls ``act`` ten times a second in a thread while the batch runs."""

    def __init__(self, act, run):
        super().__init__()
        self.watch, self.run = act, run

    def started(self, run):
        if not hasattr(self, "thread"):
            self.thread = threading.Thread(target=self.loop, daemon=True)
            self.thread.start()

    def loop(self):
        while not self.ends:
            self.watch(self.run)
            time.sleep(0.05)


def test_a_run_that_is_always_lost_fails_in_the_end(make_batch, tmp_path, executor):
    store = Store(tmp_path / "runs")
    batch = make_batch("parameters: {goal: 1000}", "counting")

    def kill(run):
        record = store.partial(run.id) / "run.json"
        if record.exists() and (store.partial(run.id) / "counting.ckpt").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(json.loads(record.read_text())["kernel"], signal.SIGKILL)

    heard = Watching(kill, batch.runs[0])
    outcomes = execute_batch(batch, store, heard, retry=0, executor=executor)
    assert outcomes.count("failed") == 1
    assert store.finished() == set()
    assert "killed by signal 9" in outcomes.errors[batch.runs[0].id]


def test_timeout_stops_a_run_where_it_is(make_batch, tmp_path, executor):
    store = Store(tmp_path / "runs")
    begun = time.monotonic()
    execute_batch(
        make_batch("parameters: {goal: 1}", "counting"), store, Heard(), executor=executor
    )
    limit = math.ceil(2 + 3 * (time.monotonic() - begun))  # the cell that counts has to be reached
    batch = make_batch(f"parameters: {{goal: 100000}}\ntimeout: {limit}", "counting")
    outcomes = execute_batch(batch, store, Heard(), executor=executor)
    assert outcomes.errors == {batch.runs[0].id: f"timeout: not finished after {limit} s"}
    assert "KeyboardInterrupt" in (store.failed(batch.runs[0].id) / "traceback.txt").read_text()


def test_a_second_interrupt_kills_what_does_not_listen(make_batch, tmp_path, executor):
    text = (NOTEBOOKS / "counting.ipynb").read_text()
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    # In the cell that counts: ipykernel puts its own handler back after each cell.
    line = r'"    state[\"chain\"]'
    assert line in text
    (tmp_path / "deaf.ipynb").write_text(text.replace(line, rf'"    {deaf}\n", {line}'))
    batch = make_batch("parameters: {goal: 100000}", tmp_path / "deaf")
    store = Store(tmp_path / "runs")
    presses = []

    def press(run):
        if counted(store, run.id) and len(presses) < 2:
            presses.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    outcomes = execute_batch(batch, store, Watching(press, batch.runs[0]), executor=executor)
    assert len(presses) == 2
    assert outcomes.is_interrupted
    assert outcomes.count("interrupted") == 1
    assert counted(store, batch.runs[0].id)["count"] > 0  # the checkpoint is still there


def test_fail_fast_stops_the_others(make_batch, tmp_path, executor):
    store = Store(tmp_path / "runs")
    batch = make_batch("zip: {method: [broken, plain, plain], pause: [0.0, 60.0, 61.0]}")
    outcomes = execute_batch(batch, store, Heard(), jobs=2, executor=executor, is_fail_fast=True)
    assert list(outcomes.statuses.values()) == ["failed", "interrupted", "waiting"]


def test_a_full_disk_is_named_and_leaves_the_store_intact(make_batch, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gqc_lab.runs.execute.write_json", full)
    (run,) = (batch := make_batch("seeds: 1")).runs
    outcome = Execution(make_job(batch, run, Store(tmp_path / "runs")), print).run()
    assert outcome["status"] == "failed"
    assert "No space left on device" in outcome["error"]
    assert Store(tmp_path / "runs").finished() == set()


def test_a_module_that_changes_during_a_run_spoils_it(make_batch, tmp_path, executor):
    (tmp_path / "tool.py").write_text("x = 1")
    change = "from pathlib import Path\nPath('tool.py').write_text('x = 2')"
    write_notebook(tmp_path / "n.ipynb", "import tool", change)
    batch, store = make_batch("seeds: [1]", tmp_path / "n"), Store(tmp_path / "runs")
    outcomes = execute_batch(batch, store, Heard(), executor=executor)
    message = "tool: not as the batch was planned with; run it again with what is there now"
    assert outcomes.errors == {batch.runs[0].id: message}
    assert (store.failed(batch.runs[0].id) / "result.json").is_file()  # nothing is lost
    outcomes = execute_batch(batch, store, Heard(), executor=executor)  # at once, before it starts
    assert outcomes.errors == {batch.runs[0].id: message}
    batch = make_batch("seeds: [1]", tmp_path / "n")
    assert execute_batch(batch, store, Heard(), executor=executor).count("finished") == 1


def test_a_module_that_the_id_leaves_out_is_named(make_batch, tmp_path, executor):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "far_tool.py").write_text("x = 1")
    add = "import sys\nplace = 'lib'\nsys.path.insert(0, place)\nimport far_tool"
    write_notebook(tmp_path / "n.ipynb", add)
    batch, store = make_batch("seeds: [1]", tmp_path / "n"), Store(tmp_path / "runs")
    (error,) = execute_batch(batch, store, Heard(), executor=executor).errors.values()
    assert f"loaded far_tool ({tmp_path / 'lib' / 'far_tool.py'})" in error
    assert "sys.path.insert" in error
    batch = make_batch("seeds: [1]\ndata: [lib/far_tool.py]", tmp_path / "n")
    assert execute_batch(batch, store, Heard(), executor=executor).count("finished") == 1


def test_a_cell_that_ends_its_kernel_fails(make_batch, tmp_path, executor):
    # A kernel may take one more cell before it ends.
    write_notebook(tmp_path / "n.ipynb", "exit()", "import time\ntime.sleep(0.1)")
    batch, store = make_batch("seeds: [1]", tmp_path / "n"), Store(tmp_path / "runs")
    heard = Heard()
    outcomes = execute_batch(batch, store, heard, executor=executor)
    assert "a cell ended the kernel" in outcomes.errors[batch.runs[0].id]
    assert heard.notes == []  # it was not tried again


def test_a_kernel_from_scratch_can_be_interrupted_and_times_out(make_batch, tmp_path):
    store = Store(tmp_path / "runs")
    cold = LocalExecutor(threads=1, is_forked=False)
    begun = time.monotonic()
    execute_batch(make_batch("parameters: {goal: 1}", "counting"), store, Heard(), executor=cold)
    limit = math.ceil(2 + 3 * (time.monotonic() - begun))
    batch = make_batch(f"parameters: {{goal: 100000}}\ntimeout: {limit}", "counting")
    outcomes = execute_batch(batch, store, Heard(), executor=cold)
    assert outcomes.errors == {batch.runs[0].id: f"timeout: not finished after {limit} s"}
    batch = make_batch("parameters: {goal: 100000}\nseeds: [1]", "counting")

    def press(run):
        if counted(store, run.id):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    outcomes = execute_batch(batch, store, Watching(press, batch.runs[0]), executor=cold)
    assert outcomes.count("interrupted") == 1


def test_a_stopped_kernel_times_out(make_batch, tmp_path, executor, monkeypatch):
    monkeypatch.setattr("gqc_lab.runs.execute._GRACE", 0.5)
    write_notebook(tmp_path / "n.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)")
    batch = make_batch("seeds: [1]\ntimeout: 3", tmp_path / "n")
    outcomes = execute_batch(batch, Store(tmp_path / "runs"), Heard(), executor=executor)
    assert outcomes.errors == {batch.runs[0].id: "timeout: not finished after 3 s"}


def start_cli(tmp_path, jobs=2):
    command = [sys.executable, "-c", "from gqc_lab.cli import main; main()", "batch", "run"]
    command += [str(tmp_path / "counting.yaml"), "--jobs", str(jobs), "--runs", "runs"]
    return subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_an_interrupted_batch_goes_on_where_it_was(make_batch, tmp_path):
    store = Store(tmp_path / "runs")
    goals = "zip: {seed: [0, 1, 2], goal: [3, 200, 200]}\nthreads: 1"
    batch = make_batch(goals, "counting")
    quick, *slow = batch.runs
    process = start_cli(tmp_path)
    wait_for(lambda: quick.id in store.finished() and all(counted(store, r.id) for r in slow))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=HANG)
    assert process.returncode == 130
    assert "1 finished, 2 interrupted" in output
    assert "repeat the command to continue" in output
    assert store.finished() == {quick.id}
    reached = [counted(store, run.id)["count"] for run in slow]
    assert all(1 <= count < 200 for count in reached)

    process = start_cli(tmp_path)
    output, _ = process.communicate(timeout=HANG)
    assert process.returncode == 0, output
    assert "2 finished" in output
    assert "1 kept" in output
    rows = load(store.root).results.set_index("seed").sort_index()
    assert rows["count"].tolist() == [3, 200, 200]
    assert rows["starts"].tolist() == [1, 2, 2]


def test_who_has_a_run_in_hand_is_said(make_batch, tmp_path, executor, monkeypatch):
    monkeypatch.setattr("gqc_lab.runs.batch._BUSY_PAUSE", 0.05)
    batch, store, heard = make_batch("seeds: 1"), Store(tmp_path / "runs"), Heard()
    (run,) = batch.runs
    other = contextlib.ExitStack()
    assert other.enter_context(store.lock(run.id))
    heard.note = lambda text: (heard.notes.append(text), other.close())
    outcomes = execute_batch(batch, store, heard, executor=executor)
    assert outcomes.count("finished") == 1
    (note,) = heard.notes
    assert re.fullmatch(
        rf"{run.id}: in hand of process {os.getpid()} on .* since .*; waiting for it", note
    )


def test_two_batches_share_a_store(make_batch, tmp_path):
    store = Store(tmp_path / "runs")
    make_batch("seeds: 4\nparameters: {goal: 20}\nthreads: 1", "counting")
    both = [start_cli(tmp_path, jobs=1), start_cli(tmp_path, jobs=1)]
    outputs = [process.communicate(timeout=HANG)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    rows = load(store.root).results
    assert sorted(rows["seed"]) == [0, 1, 2, 3]
    assert rows["starts"].tolist() == [1, 1, 1, 1]
