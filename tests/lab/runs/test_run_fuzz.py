"""Damaged and strange input of every kind: a right answer or one line, never a traceback.

`make test` tries a few mutations of each kind, the slow tests 100, GQC_FUZZ=N tries N; of the four
kinds, 500 are 2,000 in all.
"""

import contextlib
import copy
import json
import math
import os
import shutil
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gqc_lab.cli import main
from gqc_lab.runs import BadInput, load
from gqc_lab.runs.notebook import read_notebook
from gqc_lab.runs.parameters import parse_option, resolve
from gqc_lab.runs.plan import read_batch
from gqc_lab.runs.store import CorruptRun, Store, to_json, write_json

TESTS = Path(__file__).parents[2]
NOTEBOOK = TESTS / "fixtures" / "notebooks" / "tiny.ipynb"
STORE = TESTS / "fixtures" / "store_24ffc06"
BATCH = """notebook: tiny.ipynb
parameters: {scale: 2.0}
grid: {method: [plain, double]}
zip: {pause: [0.0, 0.5]}
seeds: 2
data: [corpus.txt]
threads: 1
timeout: 600
resources: {GPU: 1}
report: {by: [method], columns: [loss], geometric: [loss]}
"""
NASTY = (
    "\0", "\ud800", "\ufeff", "\u2028", "\r", "\t", "\x0c", "&a [*a]", "*b", "!!timestamp x",
    "!!python/name:os.system", "!!binary aGk=", "? [1]", "<<: *x", ".nan", "-.inf", "1e999",
    "9" * 5000, "[" * 3000, "{" * 200, "010", "1:30", "2019-01-01", "yes", "~", "- ", ": ", "#",
    "'", '"', '"""', "\\", "\n", "{}", "[]", "null", "%", "---\n", "...\n", "|\n", "0x_", "1_0",
    "run", "__class__", "NaN", "-Infinity", "{1: 2}", "[[1, 2], {a: .nan}]", "\x85", "\N{SNOWMAN}",
)  # fmt: skip

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(NASTY),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(), parts, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged_bytes(draw, text):
    """The text with a piece cut out, replaced or put in, or cut off."""
    content = text if isinstance(text, bytes) else text.encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = start + draw(st.sampled_from([0, 0, 1, 2, 10, len(content)]))
        snippet = draw(st.sampled_from(NASTY).map(lambda s: s.encode("utf-8", "surrogatepass")))
        piece = draw(st.binary(max_size=4) | st.just(snippet) | st.just(b""))
        content = content[:start] + piece + content[stop:]
    return content


@st.composite
def damaged_json(draw, text):
    """The document with one value replaced, renamed or left out."""
    content = json.loads(text)
    place, key = [content], 0
    while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 5)):
        place = place[key]
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = draw(st.sampled_from(list(keys)))
    how = draw(st.sampled_from(["replace", "replace", "delete", "rename"]))
    if how == "replace" or place == [content]:
        place[key] = draw(values)
    elif how == "rename" and isinstance(place, dict):
        place[draw(st.text(max_size=5))] = place.pop(key)
    else:
        del place[key]
    return json.dumps(content).encode()


def damaged(text):
    return damaged_json(text) | damaged_bytes(text)


def fuzz(count, strategy, check):
    count = int(os.environ.get("GQC_FUZZ", count))
    phases, checks = (Phase.generate, Phase.shrink), list(HealthCheck)
    options = {"derandomize": True, "database": None, "deadline": None, "phases": phases}
    settings(max_examples=count, suppress_health_check=checks, **options)(given(strategy)(check))()


def gqc(monkeypatch, capsys, *arguments):
    """Run the command here; returns the exit code, after a look at what it says."""
    monkeypatch.setattr(sys, "argv", ["gqc", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        main()
    output = capsys.readouterr()
    assert "Traceback" not in output.err + output.out
    code = ending.value.code or 0
    assert code in {0, 1, 2}
    if code == 2:
        assert output.err.startswith("gqc: ")
        assert len(output.err.splitlines()) == 1, output.err
    return code


each_count = pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.slow)])


@pytest.fixture
def place(tmp_path):
    shutil.copy(NOTEBOOK, tmp_path)
    (tmp_path / "corpus.txt").write_text("a")
    (tmp_path / "b.yaml").write_text(BATCH)
    return tmp_path


def check_values(parameters):
    """What is stored comes back the same, in a strict reader."""
    text = to_json(parameters)
    assert json.loads(text, parse_constant=lambda name: 1 / 0) == parameters
    assert not any(isinstance(v, float) and math.isnan(v) for v in parameters.values())


@each_count
def test_notebooks(count, place, monkeypatch, capsys):
    def check(content):
        (place / "tiny.ipynb").write_bytes(content)
        if gqc(monkeypatch, capsys, "batch", "plan", place / "b.yaml", "--runs", place / "r"):
            return
        batch = read_batch(place / "b.yaml")
        node = nbformat.reads(batch.notebook.text, as_version=4)
        (place / "out.ipynb").write_text(batch.notebook.text)
        options = {"prepare_only": True, "kernel_name": "python3", "language": "python"}
        out = str(place / "out.ipynb")
        papermill.execute_notebook(out, out, batch.runs[0].parameters, **options)
        sources = [cell.source for cell in node.cells if cell.cell_type == "code"]
        assert set(batch.notebook.code) <= set(sources)

    fuzz(count, damaged(NOTEBOOK.read_text()), check)


@each_count
def test_batch_files(count, place, monkeypatch, capsys):
    def check(content):
        (place / "b.yaml").write_bytes(content)
        if gqc(monkeypatch, capsys, "batch", "plan", place / "b.yaml", "--runs", place / "r"):
            return
        batch = read_batch(place / "b.yaml")
        assert len({run.id for run in batch.runs}) == len(batch.runs)
        for run in batch.runs:
            check_values(run.parameters)
            assert resolve(batch.notebook.declared, run.parameters) == run.parameters

    fuzz(count, damaged_bytes(BATCH) | damaged_json(json.dumps(yaml.safe_load(BATCH))), check)


@each_count
def test_parameters(count, place, monkeypatch, capsys):
    declared = read_notebook(place / "tiny.ipynb").declared
    texts = st.text(max_size=30) | st.sampled_from(NASTY) | values.map(str) | values.map(json.dumps)

    def check(given):
        name, text = given
        with contextlib.suppress(BadInput):
            check_values(resolve(declared, {name: parse_option(declared, name, text)}))

    fuzz(count, st.tuples(st.sampled_from(sorted(declared)), texts), check)


def fill(folder):
    """A store with finished, failed, interrupted and dead runs, and their batch."""
    shutil.copytree(STORE, folder / "r")
    batch, store = read_batch(folder / "b.yaml"), Store(folder / "r")
    died, failed, done, *_ = batch.runs
    for key in (died.id, failed.id, done.id):
        store.partial(key).mkdir(parents=True)
    store._lock_path(died.id).write_text("process 1 on moon since 1969")
    note = {"status": "running", "attempts": 1, "host": "moon", "pid": 1, "started": 1.0}
    write_json(store.partial(died.id) / "run.json", note)
    write_json(store.partial(failed.id) / "run.json", {"status": "failed", "error": "no"})
    store.fail(failed.id)
    common = {"notebook": "tiny", "parameters": done.parameters}
    result = {"run": done.id, **common, "results": [{"loss": 1.0}], "info": {}}
    write_json(store.partial(done.id) / "result.json", result)
    record = {"id": done.id, **common, "inputs": done.inputs, "started": 0.0, "seconds": 1.0}
    store.publish(done.id, record)
    return batch, store


@each_count
def test_stored_files(count, place, monkeypatch, capsys):
    monkeypatch.setattr("gqc_lab.runs.index._FEW", 0)  # so that there is an index to damage
    batch, store = fill(place)
    everything = load(store.root)
    expected = everything.results.set_index("run").to_dict("index")
    history = everything.history
    files = sorted(path for path in store.root.rglob("*") if path.is_file())
    originals = {path: path.read_bytes() for path in files}

    @st.composite
    def damages(draw):
        path = draw(st.sampled_from(files))
        text = originals[path]
        kinds = [damaged_bytes(text), st.none()]
        kinds += [damaged_json(text)] if path.suffix in {".json", ".ipynb"} else []
        return path, draw(st.one_of(kinds))

    def check(damage):
        path, content = damage
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        try:
            look(store, batch)
        finally:
            path.write_bytes(originals[path])

    def look(store, batch):
        runs = ["--runs", store.root]
        for command in (["batch", "plan"], ["batch", "status"]):
            gqc(monkeypatch, capsys, *command, place / "b.yaml", *runs)
        for run in batch.runs:
            gqc(monkeypatch, capsys, "batch", "plan", place / "b.yaml", "--explain", run.id, *runs)
        gqc(monkeypatch, capsys, "runs", "gc", place / "b.yaml", *runs)
        gqc(monkeypatch, capsys, "runs", "list", *runs)
        with contextlib.suppress(CorruptRun):
            loaded = load(store.root)
            rows = loaded.results.set_index("run").to_dict("index")
            assert all(str(rows[key]) == str(expected[key]) for key in rows)
            whole = history[history["run"].isin(list(rows))].reset_index(drop=True)
            assert loaded.history.equals(whole)

    look(store, copy.copy(batch))
    fuzz(count, damages(), check)
