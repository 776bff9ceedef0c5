"""Tables, explanations, estimates, export and clean-up of a store."""

import json
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from gqc.lab.runs import BadInput, load
from gqc.lab.runs.catalog import (
    describe_run,
    export,
    find_stored,
    garbage,
    make_table,
    remove,
)
from gqc.lab.runs.cost import count_flops, describe_cost
from gqc.lab.runs.explain import explain, find_run
from gqc.lab.runs.overview import estimate, print_plan, statuses
from gqc.lab.runs.plan import read_batch
from gqc.lab.runs.report import batch_results, summarize_batch
from gqc.lab.runs.report import make_table as make_summary
from gqc.lab.runs.store import Store, write_json

NOTEBOOKS = Path(__file__).parents[2] / "fixtures" / "notebooks"


def finish(store, run, seconds=1.0, attempts=1, **row):
    """Store ``run`` as finished, without executing it."""
    folder = store.partial(run.id)
    folder.mkdir(parents=True)
    common = {"notebook": "tiny", "parameters": run.parameters}
    write_json(folder / "result.json", {"run": run.id, **common, "results": [row], "info": {}})
    record = {"id": run.id, **common, "inputs": run.inputs, "started": 0.0}
    store.publish(run.id, {**record, "seconds": seconds, "attempts": attempts})


def fail(store, run):
    store.partial(run.id).mkdir(parents=True)
    write_json(store.partial(run.id) / "run.json", {"error": "ValueError: no"})
    store.fail(run.id)


@pytest.fixture
def make_batch(tmp_path):
    def make(text, notebook=NOTEBOOKS / "tiny.ipynb"):
        (tmp_path / "b.yaml").write_text(f"notebook: {notebook}\n{text}")
        return read_batch(tmp_path / "b.yaml")

    return make


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def render(table):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_status_of_each_run(make_batch, store):
    batch = make_batch("seeds: 5")
    finish(store, batch.runs[0], loss=1.0)
    finish(store, batch.runs[1], loss=1.0)
    (store.folder(batch.runs[1].id) / "result.json").write_text("{}")
    fail(store, batch.runs[2])
    store.partial(batch.runs[3].id).mkdir(parents=True)
    expected = ["finished", "corrupt", "failed", "interrupted", "waiting"]
    assert list(statuses(batch, store).values()) == expected


def test_estimate_prefers_runs_that_differ_in_the_seed_only(make_batch, store):
    batch = make_batch("grid: {method: [plain, double]}\nseeds: 3")
    left = {run.id for run in batch.runs}
    assert estimate(batch, store, left, jobs=2) is None
    for run, seconds in zip(batch.runs[:3], [1.0, 2.0, 9.0], strict=True):
        finish(store, run, seconds)
        left.discard(run.id)
    assert estimate(batch, store, left, jobs=2) == 3 * 2.0 / 2  # the notebook's median
    finish(store, batch.runs[3], 10.0)
    left.discard(batch.runs[3].id)
    assert estimate(batch, store, left, jobs=1) == 2 * 10.0
    assert estimate(batch, store, left, jobs=8) == 10.0


def test_cost_is_of_the_runs_that_are_left(make_batch, store, tmp_path, monkeypatch):
    (tmp_path / "costs_of_test.py").write_text(
        "def flops(p):\n"
        "    if p['seed'] == 9:\n"
        "        raise ValueError('seed=9: too dear')\n"
        "    return 3.6e15 * (1 + p['seed'])\n"
        "def nothing(p):\n"
        "    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cost = "cost: {{flops: 'costs_of_test:{}', flops_per_second: 1.0e+12}}\n"
    batch = make_batch("seeds: 3\n" + cost.format("flops"))  # an hour, two, and three
    flops = count_flops(batch)
    assert list(flops.values()) == [3.6e15, 7.2e15, 10.8e15]
    finish(store, batch.runs[0])
    left = [run.id for run in batch.runs[1:]]
    assert "1.8e+16 floating-point operations to go, 5 h" in describe_cost(batch, flops, left, 1)
    assert ", 3 h at" in describe_cost(batch, flops, left, 4)  # the longest has to end
    console = Console(width=200)
    with console.capture() as capture:
        print_plan(batch, store, 1, console)
    assert "1.8e+16 floating-point operations to go, 5 h at 1e+12" in capture.get()
    assert describe_cost(make_batch("seeds: 3"), {}, left, 1) == ""

    wrong = {"seeds: [9]\n" + cost.format("flops"): "costs_of_test:flops: seed=9: too dear"}
    wrong["seeds: 1\n" + cost.format("nothing")] = "returned None: expected a number"
    wrong["seeds: 1\n" + cost.format("absent")] = "cost: flops: 'costs_of_test:absent'"
    for text, message in wrong.items():
        with pytest.raises(BadInput, match=message):
            count_flops(make_batch(text))


def test_explanation_names_what_changed(make_batch, store, tmp_path):
    text = (NOTEBOOKS / "tiny.ipynb").read_text()
    (tmp_path / "tiny.ipynb").write_text(text)
    (tmp_path / "corpus.txt").write_text("a")
    arguments = "seeds: [1, 2]\ndata: [corpus.txt]", "tiny.ipynb"
    batch = make_batch(*arguments)
    assert explain(batch.runs[0], batch, store)[1:] == ["no run of tiny is in the store"]
    finish(store, batch.runs[0])
    assert "is finished" in explain(batch.runs[0], batch, store)[0]
    fail(store, batch.runs[1])
    lines = explain(batch.runs[1], batch, store)
    assert "it failed: ValueError: no" in lines
    assert lines[-1] == "  parameter seed: 1 -> 2"

    (tmp_path / "corpus.txt").write_text("b")
    (tmp_path / "tiny.ipynb").write_text(text.replace("stream.random()", "1.0"))
    changed = make_batch(*arguments)
    assert changed.runs[0].id != batch.runs[0].id
    lines = explain(changed.runs[0], changed, store)
    assert lines[-2:] == ["  notebook cell 1: changed", "  data corpus.txt: changed"]

    record = store.folder(batch.runs[0].id) / "run.json"
    record.write_text(record.read_text()[:-9])
    assert "is corrupt" in explain(batch.runs[0], batch, store)[0]


def test_runs_are_found_by_the_start_of_their_id(make_batch, store):
    batch = make_batch("seeds: 40")
    assert find_run(batch, batch.runs[3].id[:8]) is batch.runs[3]
    for run in batch.runs[:20]:
        finish(store, run)
    assert find_stored(store, batch.runs[0].id) == batch.runs[0].id
    for start in ("", "g", "0123456789abcdef"):
        with pytest.raises(BadInput, match="begin so"):
            find_run(batch, start)
        with pytest.raises(BadInput, match="begin so"):
            find_stored(store, start)


def test_listing_shows_what_differs(make_batch, store, tmp_path):
    batch = make_batch("seeds: 2")
    for run in batch.runs:
        finish(store, run, loss=1.0 + run.parameters["seed"] / 3)
    loaded = load(store.root)
    text = render(make_table(loaded, 50))
    assert "method=plain" in text
    assert "1.3333" in text
    assert "│ 1" in text
    shown = describe_run(store, batch.runs[0].id)
    assert shown["results"] == [{"loss": 1.0}]
    assert json.loads(json.dumps(shown)) == shown

    export(loaded.results, tmp_path / "out.csv")
    assert pd.read_csv(tmp_path / "out.csv")["loss"].tolist() == loaded.results["loss"].tolist()
    with pytest.raises(BadInput, match=r"ends in \.csv or \.parquet"):
        export(loaded.results, tmp_path / "out.txt")


def test_garbage_is_what_nothing_asks_for(make_batch, store):
    old = make_batch("seeds: [7, 8]")
    batch = make_batch("seeds: [0, 1, 2, 8]")
    for run in (*old.runs, batch.runs[0]):
        finish(store, run)
    fail(store, batch.runs[1])
    store.partial(batch.runs[2].id).mkdir(parents=True)
    busy = store.partial("f" * 16)
    busy.mkdir()
    unused = [store.failed(batch.runs[1].id), store.partial(batch.runs[2].id)]
    with store.lock("f" * 16):
        assert garbage(store, []) == unused
        assert garbage(store, [batch]) == [*unused, store.folder(old.runs[0].id)]
        remove(store, [*garbage(store, [batch]), busy])
    assert busy.exists()
    assert store.finished() == {old.runs[1].id, batch.runs[0].id}
    assert not any(path.exists() for path in unused)


def test_summary_is_mean_and_t_interval_of_the_batch_only(make_batch, store):
    batch = make_batch("grid: {scale: [1.0, 2.0]}\nseeds: 3\nreport: {columns: [loss]}")
    other = make_batch("seeds: [9]").runs[0]
    for run in (*batch.runs, other):
        finish(store, run, loss=run.parameters["scale"] * (run.parameters["seed"] + 1), note="x")
    results = batch_results(batch, load(store.root))
    assert results["run"].tolist() == [run.id for run in batch.runs]
    summary = summarize_batch(batch, results)
    assert summary["mean"].tolist() == [2.0, 4.0]
    # With 2 degrees of freedom t has a closed form, (2p - 1) / sqrt(2 p (1 - p)); s = 1 and 2.
    half = 0.95 / (2 * 0.975 * 0.025) ** 0.5 / 3**0.5
    assert summary["high"].tolist() == pytest.approx([2 + half, 4 + 2 * half], rel=1e-12)
    assert "2.0 [-0.5, 4.5]" in render(make_summary(batch, summary))

    wrong = make_batch("seeds: 1\nreport: {columns: [los]}")
    with pytest.raises(BadInput, match="no result column 'los'; did you mean 'loss'"):
        summarize_batch(wrong, results)
