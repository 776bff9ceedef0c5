"""A run is in the store whole or not at all, and what is corrupt is found."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gqc_lab import runs
from gqc_lab.runs.store import CorruptRun, Store, seal, to_json, write_json

ID = "0123456789abcdef"
# Written by commit 24ffc06, before the lab left the core: two finished runs and a failed one.
OLD = Path(__file__).parents[2] / "fixtures" / "store_24ffc06"


def fill(store, key=ID, rows=({"loss": 1.0},), history=None, **parameters):
    """A finished run, by the calls that a real one makes."""
    folder = store.partial(key)
    folder.mkdir(parents=True)
    (folder / "notebook.ipynb").write_text("{}")
    (folder / "scrap.ckpt").write_text("x")
    content = {"run": key, "notebook": "nb", "parameters": parameters, "results": list(rows)}
    write_json(folder / "result.json", {**content, "info": {}})
    if history is not None:
        history.to_parquet(folder / "history.parquet", index=False)
    record = {"id": key, "notebook": "nb", "parameters": parameters, "seconds": 2.0}
    store.publish(key, record)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def test_a_published_run_is_whole_and_verifies(store):
    fill(store, history=pd.DataFrame({"loss": [1.0]}))
    assert store.finished() == {ID}
    names = {path.name for path in store.folder(ID).iterdir()}
    assert names == {"notebook.ipynb", "result.json", "history.parquet", "run.json"}
    assert store.verify(ID)["files"].keys() == names - {"run.json"}
    assert not store.partial(ID).exists()


def test_nothing_is_made_by_looking(store):
    assert store.finished() == set()
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["notebook.ipynb", "result.json", "history.parquet", "run.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_any_damage_is_found_and_set_aside(store, name, damage):
    fill(store, history=pd.DataFrame({"loss": [1.0]}))
    path = store.folder(ID) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-3])
    with pytest.raises(CorruptRun, match=name):
        store.verify(ID)
    shelf = store.quarantine(ID)
    assert store.finished() == set()
    fill(store)
    assert store.quarantine(ID) != shelf


def test_a_run_under_another_name_is_found(store):
    fill(store)
    store.folder(ID).rename(store.folder("f" * 16))
    with pytest.raises(CorruptRun, match=f"is of run '{ID}'"):
        store.verify("f" * 16)


def try_lock(root, answers):
    with Store(root).lock(ID) as is_held:
        answers.put(is_held)


def test_one_process_holds_a_run_and_its_death_frees_it(store):
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()

    def ask():
        process = context.Process(target=try_lock, args=(store.root, answers))
        process.start()
        process.join()
        return answers.get()

    with store.lock(ID) as is_held:
        assert is_held
        assert not ask()
    assert ask()
    assert list((store.root / "partial").iterdir()) == []


def hold_and_die(root, sender):
    with Store(root).lock(ID):
        child = subprocess.Popen(["sleep", "1000"], close_fds=False, start_new_session=True)
        sender.put(child.pid)
        time.sleep(1000)


def test_what_a_run_started_does_not_hold_its_lock(store):
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=hold_and_die, args=(store.root, answers))
    process.start()
    orphan = answers.get()
    try:
        assert store.is_running(ID)
        process.kill()
        process.join()
        assert not store.is_running(ID)
        with store.lock(ID) as is_held:
            assert is_held
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_save_outside_a_run_only_returns_the_rows(monkeypatch, tmp_path):
    monkeypatch.delenv("GQC_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert runs.current_run_dir() is None
    frame = runs.save(None, [{"a": 1}, {"a": 2}])
    assert frame["a"].tolist() == [1, 2]
    assert list(tmp_path.iterdir()) == []


def test_save_inside_a_run_leaves_plain_numbers(monkeypatch, tmp_path):
    monkeypatch.setenv("GQC_RUN_DIR", str(tmp_path))
    history = pd.DataFrame({"loss": [1.0, 2.0]})
    runs.save(history, {"loss": np.float32(0.5), "n": np.int64(3), "none": np.nan}, data_hash="ab")
    content = json.loads((tmp_path / "result.json").read_text())
    assert content == {
        "results": [{"loss": 0.5, "n": 3, "none": None}],
        "info": {"data_hash": "ab"},
    }
    assert pd.read_parquet(tmp_path / "history.parquet").equals(history)
    with pytest.raises(TypeError, match="x=<object"):
        runs.save(None, {"x": object()})


@pytest.fixture
def filled(store):
    for k, method in enumerate(["gnts", "adamw", "gnts"]):
        records = pd.DataFrame({"tokens": [1, 2], "loss": [k, k + 0.5]})
        row = {"method": method, "loss": float(k)}
        fill(store, f"{k:016x}", [row], records, seed=k, sizes=[k], method="overridden")
    return store


def test_load_gives_tidy_frames(filled):
    loaded = runs.load(filled.root)
    assert loaded.results["run"].tolist() == [f"{k:016x}" for k in range(3)]
    assert loaded.results["method"].tolist() == ["gnts", "adamw", "gnts"]
    assert loaded.results["sizes"].tolist() == [[0], [1], [2]]
    assert loaded.history.columns.tolist() == ["run", "tokens", "loss"]
    assert loaded.history.groupby("run")["loss"].max().tolist() == [0.5, 1.5, 2.5]


@pytest.mark.parametrize(
    "where", [{"method": "gnts", "seed": [1, 2]}, "method = 'gnts' AND seed >= 1"]
)
def test_load_selects(filled, where):
    loaded = runs.load(filled.root, where=where)
    assert loaded.results["seed"].tolist() == [2]
    assert set(loaded.history["run"]) == {f"{2:016x}"}


def test_histories_of_different_notebooks_are_read_together(store):
    fill(store, "a" * 16, history=pd.DataFrame({"task": [1], "correct": [True]}))
    fill(store, "b" * 16, history=pd.DataFrame({"task": ["parity"], "loss": [0.5]}))
    history = runs.load(store.root).history
    assert history.columns.tolist() == ["run", "task", "correct", "loss"]
    assert history["task"].tolist() == ["1", "parity"]


def test_a_condition_reaches_no_files(filled, tmp_path):
    target = tmp_path / "stolen.csv"
    for where in (f"true; COPY results TO '{target}'", "loss IN (FROM read_text('/etc/passwd'))"):
        with pytest.raises(runs.BadInput, match="where "):
            runs.load(filled.root, where)
    assert not target.exists()


def test_load_refuses_what_it_cannot_trust(filled, tmp_path):
    with pytest.raises(KeyError, match="'metod': expected one of run, notebook"):
        runs.load(filled.root, where={"metod": 1})
    with pytest.raises(FileNotFoundError, match="no such run store"):
        runs.load(tmp_path / "none")
    loaded = runs.load(filled.root)
    history = filled.folder(f"{0:016x}") / "history.parquet"
    history.write_bytes(history.read_bytes()[:-1])
    with pytest.raises(CorruptRun, match="run its batch again"):
        _ = loaded.history
    result = filled.folder(f"{1:016x}") / "result.json"
    result.write_text(result.read_text().replace("adamw", "adamx"))
    with pytest.raises(CorruptRun, match=r"result\.json"):
        runs.load(filled.root)


def test_load_of_an_empty_store(tmp_path):
    loaded = runs.load(tmp_path)
    assert len(loaded.results) == 0
    assert len(loaded.history) == 0


def test_a_store_of_the_first_version_is_read():
    store = Store(OLD)
    loaded = runs.load(OLD)
    assert loaded.results.set_index("method")["loss"].round(4).to_dict() == {
        "plain": 0.6743, "double": 1.3486,
    }  # fmt: skip
    assert len(loaded.history) == 6
    assert all(store.verify(key)["notebook"] == "tiny" for key in store.finished())
    assert [path.parent.name for path in store.garbage()] == ["failed"]


def test_a_later_format_is_refused_in_words(store):
    fill(store)
    path = store.folder(ID) / "run.json"
    write_json(path, seal({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CorruptRun, match="format 2; this gqc reads 1"):
        runs.load(store.root)


def test_a_share_that_fails_for_a_moment_proves_no_damage(store, monkeypatch):
    fill(store)
    monkeypatch.setattr("gqc_lab.runs.store.time.sleep", lambda seconds: None)
    failures = [2]
    read = Path.read_bytes

    def flaky(path):
        if failures[0]:
            failures[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", flaky)
    assert store.verify(ID)["id"] == ID
    failures[0] = 3
    with pytest.raises(OSError, match="Stale"):
        store.verify(ID)


@pytest.mark.parametrize("name", ["lr=0.1", "[a-z] *?", "method=x"])
def test_the_name_of_a_folder_means_nothing(tmp_path, name):
    store = Store(tmp_path / name / "runs")
    fill(store, history=pd.DataFrame({"lr": [0.5], "method": ["y"]}))
    loaded = runs.load(store.root)
    assert loaded.history[["lr", "method"]].to_numpy().tolist() == [[0.5, "y"]]


def test_a_run_that_is_deleted_meanwhile_is_left_out(store, monkeypatch):
    fill(store)
    monkeypatch.setattr(Store, "finished", lambda self: {ID, "f" * 16})
    assert runs.load(store.root).results["run"].tolist() == [ID]


def test_a_store_is_read_while_runs_are_deleted(store):
    keys = [f"{k:016x}" for k in range(60)]
    for key in keys:
        fill(store, key)
    deleting = threading.Thread(target=store.remove, args=([store.folder(k) for k in keys[1:]],))
    deleting.start()
    reads = [runs.load(store.root).results["run"].tolist()]
    while deleting.is_alive():
        reads.append(runs.load(store.root).results["run"].tolist())
    deleting.join()
    assert all(keys[0] in read for read in reads)
    assert runs.load(store.root).results["run"].tolist() == keys[:1]
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".")] == []


def test_numbers_that_are_not_finite_are_strict_json(store, monkeypatch, tmp_path):
    monkeypatch.setenv("GQC_RUN_DIR", str(tmp_path))
    runs.save(None, {"a": np.inf, "b": -np.inf, "c": np.nan}, lr=[np.inf, 1.0])

    def refuse(name):
        raise AssertionError(name)

    content = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert content["results"] == [{"a": np.inf, "b": -np.inf, "c": None}]
    assert content["info"] == {"lr": [np.inf, 1.0]}


def test_only_values_are_replaced_in_strict_json():
    content = {
        "numpy": [np.float64("inf"), np.float64("-inf"), np.float64("nan")],
        "text": ["NaN", "-Infinity,", "NaN\nInfinity\n", "\u2028NaN"],
        "Infinity": {"NaN": (), "last": float("inf")},
    }
    for ensure_ascii in (True, False):
        text = to_json(content, ensure_ascii=ensure_ascii)
        found = json.loads(text, parse_constant=pytest.fail)
        assert found["numpy"] == [float("inf"), -float("inf"), None]
        assert found["text"] == content["text"]
        assert found["Infinity"] == {"NaN": [], "last": float("inf")}


def test_a_column_may_not_be_called_as_the_store_calls_the_id(monkeypatch):
    with pytest.raises(ValueError, match="column 'run'"):
        runs.save(None, {"run": 1})
    with pytest.raises(ValueError, match="column 'run'"):
        runs.save(pd.DataFrame({"run": [1]}), {"loss": 1.0})


def test_who_holds_a_run_is_said(store):
    with store.lock(ID) as is_held:
        assert is_held
        assert f"process {os.getpid()} on " in store.describe_holder(ID)


def test_two_batches_may_set_the_same_run_aside(store):
    fill(store)
    assert store.quarantine(ID)
    assert store.quarantine(ID) is None


def test_a_file_in_the_place_of_a_run_is_set_aside(store):
    store.check_writable()
    store.folder(ID).write_text("")
    with pytest.raises(CorruptRun):
        store.verify(ID)
    assert store.quarantine(ID).is_file()
    assert store.finished() == set()


def test_a_history_is_read_for_the_chosen_runs_alone(store):
    """What hundreds of runs cost, without a clock: bench_store.py has the seconds."""
    records = pd.DataFrame({"tokens": np.arange(5), "loss": np.arange(5) / 7})
    for k in range(300):
        fill(store, f"{k:016x}", [{"loss": k / 7}], records, seed=k)
    loaded = runs.load(store.root)
    assert loaded.results["loss"].tolist() == [k / 7 for k in range(300)]
    (store.folder(f"{7:016x}") / "history.parquet").write_bytes(b"damaged")
    some = runs.load(store.root, where="seed BETWEEN 10 AND 29", ids=loaded.results["run"][8:])
    assert len(some.history) == 20 * 5
