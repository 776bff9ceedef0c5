"""Tables, explanations, estimates and clean-up of a store."""

import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from gqc_lab.cli import main
from gqc_lab.runs import BadInput, CorruptRun, load
from gqc_lab.runs.batch import set_corrupt_aside
from gqc_lab.runs.overview import (
    count_flops,
    describe_cost,
    estimate,
    explain,
    find_run,
    print_plan,
    statuses,
)  # fmt: skip
from gqc_lab.runs.plan import read_batch
from gqc_lab.runs.report import (
    batch_results,
    describe_summary,
    draw_figure,
    list_results,
    make_table,
    show_interval,
    summarize_batch,
)  # fmt: skip
from gqc_lab.runs.store import Store, write_json

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


def render(table, width=200):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_status_of_each_run(make_batch, store):
    batch = make_batch("seeds: 6")
    finish(store, batch.runs[0], loss=1.0)
    finish(store, batch.runs[1], loss=1.0)
    (store.folder(batch.runs[1].id) / "result.json").write_text("{}")
    fail(store, batch.runs[2])
    store.partial(batch.runs[3].id).mkdir(parents=True)
    store.partial(batch.runs[4].id).mkdir()
    write_json(store.partial(batch.runs[4].id) / "run.json", {"status": "interrupted"})
    expected = ["finished", "corrupt", "failed", "died", "interrupted", "waiting"]
    assert list(statuses(batch, store).values()) == expected
    with store.lock(batch.runs[3].id):
        assert statuses(batch, store)[batch.runs[3].id] == "running"


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
    for name in (":flops", ".costs_of_test:flops"):
        text = f"seeds: 1\ncost: {{flops: '{name}', flops_per_second: 1}}"
        wrong[text] = f"cost: flops: '{name}': invalid format"
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
    assert lines[1].startswith("it failed: ValueError: no\n")
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


def test_runs_are_found_by_the_start_of_their_id(make_batch):
    batch = make_batch("seeds: 40")
    assert find_run(batch, batch.runs[3].id[:8]) is batch.runs[3]
    for start in ("", "g", "0123456789abcdef"):
        with pytest.raises(BadInput, match="begin so"):
            find_run(batch, start)


def test_listing_shows_what_differs(make_batch, store):
    batch = make_batch("seeds: 2")
    for run in batch.runs:
        finish(store, run, loss=1.0 + run.parameters["seed"] / 3)
    loaded = load(store.root)
    text = render(list_results(loaded.rows, 50))
    assert "method=plain" in text
    assert "1.3333" in text
    assert "│ 1" in text


def make_unreadable(path):
    path.unlink()
    path.symlink_to(path.name)  # "too many levels of symbolic links", for root too


def test_damaged_runs_do_not_hide_the_others(make_batch, store, tmp_path, monkeypatch, capsys):
    batch = make_batch("seeds: 4")
    for run in batch.runs:
        finish(store, run, loss=float(run.parameters["seed"]))
    locked, torn, *whole = batch.runs
    make_unreadable(store.folder(locked.id) / "run.json")
    (store.folder(torn.id) / "result.json").write_text("{}")

    def gqc(*arguments):
        monkeypatch.setattr(sys, "argv", ["gqc", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        return ending.value.code or 0, output.out + output.err

    # Numbers of fewer runs only for those who ask for them, and all are told which are missing.
    why = {
        locked.id: "cannot be read .*symbolic links.*",
        torn.id: r"is corrupt \(result\.json: .*",
    }
    either = "|".join(f"{key} {reason}" for key, reason in why.items())
    with pytest.raises(CorruptRun, match=rf"({either}) \(1 more .*skip_damaged=True"):
        load(store.root)
    for where in (None, "loss >= 0"):
        loaded = load(store.root, where, skip_damaged=True)
        assert sorted(loaded.results["loss"]) == [2.0, 3.0]
        assert loaded.damaged.keys() == why.keys()
        code, text = gqc(
            "runs", "list", "--runs", store.root, *(["--where", where] if where else [])
        )
        assert code == 1
        assert "2 rows" in text
        assert all(f"without {key}, which " in text for key in why)
    assert load(store.root, ids=[run.id for run in whole]).results["loss"].sum() == 5.0

    assert list(statuses(batch, store).values()) == ["unreadable", "corrupt", *["finished"] * 2]
    code, text = gqc("batch", "status", tmp_path / "b.yaml", "--runs", store.root)
    assert code == 1
    assert f"{locked.id} seed=0: cannot be read" in text
    assert f"{torn.id} seed=1: is corrupt" in text
    assert "cannot be read" in explain(locked, batch, store)[0]
    assert store.garbage((), {"tiny"}) == sorted(store.folder(run.id) for run in batch.runs[1:])
    code, text = gqc("runs", "merge", store.root, tmp_path / "copy")
    assert (code, text.splitlines()[-1]) == (1, "2 copied, 1 corrupt, 1 unreadable")

    # What cannot be read is neither thrown away nor made again.
    notes = []
    outcomes = set_corrupt_aside(batch, store, notes.append)
    assert list(outcomes.statuses.values()) == ["failed", "waiting", "kept", "kept"]
    assert "cannot be read" in outcomes.errors[locked.id]
    assert store.finished() == {run.id for run in (locked, *whole)}
    finish(store, torn, loss=1.0)
    code, text = gqc("batch", "run", tmp_path / "b.yaml", "--runs", store.root)
    assert code == 1
    assert "4 runs: 1 failed, 3 kept" in text
    assert len(load(store.root, skip_damaged=True).results) == 3


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
        assert store.garbage() == unused
        asked = ({run.id for run in batch.runs}, {batch.notebook.name})
        assert store.garbage(*asked) == [*unused, store.folder(old.runs[0].id)]
        store.remove([*store.garbage(*asked), busy])
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
    assert "2.0 [-0.5, 4.5]" in render(make_table(batch, summary, Console(width=200)))

    wrong = make_batch("seeds: 1\nreport: {columns: [los]}")
    with pytest.raises(BadInput, match="no result column 'los'; did you mean 'loss'"):
        summarize_batch(wrong, results)


def rows_of(batch, *rows):
    """Results of every run of ``batch``: these rows, with the run's parameters."""
    common = [{"run": run.id, "notebook": "tiny", **run.parameters} for run in batch.runs]
    return pd.DataFrame([{**run, **row} for run in common for row in rows])


METHODS = ({"method": "gnts", "loss": 2.0}, {"method": "adamw", "loss": 3.0})


def test_methods_of_one_run_are_no_repetitions(make_batch):
    batch = make_batch("seeds: 1")
    summary = summarize_batch(batch, rows_of(batch, *METHODS))
    assert summary["method"].tolist() == ["gnts", "adamw"]
    assert summary["mean"].tolist() == [2.0, 3.0]
    assert summary["low"].isna().all()
    text = render(make_table(batch, summary, Console(width=200)))
    assert "interval" not in text
    assert "runs" not in text


def test_rows_that_no_method_tells_apart_are_printed_as_they_are(make_batch):
    batch = make_batch("seeds: 1")
    named = rows_of(batch, *({**row, "stream": s} for row in METHODS for s in ("a", "b")))
    assert list(summarize_batch(batch, named).columns[:3]) == ["method", "stream", "column"]
    alike = rows_of(batch, *METHODS, *METHODS)
    summary = summarize_batch(batch, alike)
    assert summary["row"].tolist() == ["1", "2", "3", "4"]
    assert summary["mean"].tolist() == [2.0, 3.0, 2.0, 3.0]
    both = make_batch("seeds: 2")
    summary = summarize_batch(both, rows_of(both, *METHODS, *METHODS))
    assert list(summary.columns[:3]) == ["method", "run", "row"]
    assert summary["low"].isna().all()


def test_rows_of_one_run_count_once(make_batch):
    batch = make_batch("seeds: 3\nreport: {by: [method]}")
    once = summarize_batch(batch, rows_of(batch, METHODS[0]))
    results = rows_of(batch, METHODS[0], {"method": "gnts", "loss": 4.0})
    results["loss"] += results["seed"]
    summary = summarize_batch(batch, results)
    assert (summary["mean"].item(), summary["n"].item()) == (4.0, 3)
    assert summary["high"].item() == pytest.approx(4 + 0.95 / (2 * 0.975 * 0.025) ** 0.5 / 3**0.5)
    assert once["low"].item() == once["high"].item() == 2.0


def test_runs_of_a_list_that_vary_different_parameters_are_not_pooled(make_batch):
    """The first names one parameter, the others another, to the same value."""
    text = "list: [{rounds: 2}, {scale: 2.0}, {pause: 2.0}]\nreport: {columns: [loss]}"
    batch = make_batch(text)
    results = rows_of(batch, {"loss": 1.0})
    results["loss"] += results.index
    summary = summarize_batch(batch, results)
    assert summary["mean"].tolist() == [1.0, 2.0, 3.0]
    assert summary["low"].isna().all()
    for run in batch.runs:
        assert run.varied == ("rounds", "scale", "pause")


def test_runs_that_differ_in_more_than_the_seed_have_no_interval(make_batch):
    batch = make_batch("grid: {scale: [1.0, 2.0]}\nseeds: 2\nreport: {by: [method]}")
    results = rows_of(batch, METHODS[0])
    results["loss"] += results["seed"]
    summary = summarize_batch(batch, results)
    assert (summary["mean"].item(), summary["n"].item()) == (2.5, 4)
    assert summary["low"].isna().all()
    apart = make_batch("grid: {scale: [1.0, 2.0]}\nseeds: 2\nreport: {by: [method, scale]}")
    assert summarize_batch(apart, results)["low"].notna().all()


def test_the_interval_of_a_geometric_mean_stays_above_zero(make_batch):
    batch = make_batch("seeds: 3\nreport: {by: [method], geometric: [steps]}")
    results = rows_of(batch, {"method": "gnts"}).assign(steps=[1.0, 10.0, 100.0])
    (_, row), *_ = summarize_batch(batch, results).iterrows()
    half = 0.95 / (2 * 0.975 * 0.025) ** 0.5 / 3**0.5  # decades: their deviation is 1
    assert row["mean"] == pytest.approx(10)
    assert [row["low"], row["high"]] == pytest.approx([10 ** (1 - half), 10 ** (1 + half)])
    assert show_interval(row) == "10 [0.0328, 3,049]"
    assert describe_summary(batch, pd.DataFrame([row])).endswith("; geometric mean of steps")
    with pytest.raises(BadInput, match="geometric: 'steps' has a value of 0; it needs > 0"):
        summarize_batch(batch, results.assign(steps=[0.0, 1.0, 2.0]))


def test_a_table_that_is_too_wide_has_a_row_for_each_number(make_batch):
    batch = make_batch("seeds: 1")
    names = [f"quite_a_long_name_{i}" for i in range(5)]
    results = rows_of(batch, *({**row, **dict.fromkeys(names, 1234.5)} for row in METHODS))
    summary = summarize_batch(batch, results)
    for width, lines in ((200, 2), (60, 12)):
        text = render(make_table(batch, summary, Console(width=width)), width)
        assert [name for name in names if name not in text] == []
        assert sum("│" in line for line in text.splitlines()) == lines


def test_a_number_that_no_run_or_only_some_have_is_shown(make_batch):
    """All runs of a method have diverged, or say so in words."""
    batch = make_batch("seeds: 3")
    rows = rows_of(batch, {"method": "gnts", "loss": None, "note": "a", "is_done": True})
    summary = summarize_batch(batch, rows)
    assert summary["column"].tolist() == ["loss"]
    assert summary["mean"].isna().all()
    assert "nan" in render(make_table(batch, summary, Console(width=200)))
    mixed = rows.assign(loss=pd.Series([1.0, "diverged", 3.0], dtype=object))
    summary = summarize_batch(batch, mixed)
    assert (summary["column"].tolist(), summary["n"].tolist()) == (["loss"], [3])
    assert summary["mean"].isna().all()  # not the mean of the two that are left


def test_a_figure_that_runs_do_not_suit_is_refused_in_one_line(make_batch):
    """As where the experiment counts examples and the figure asks for tokens."""
    batch = make_batch("seeds: 1\nreport: {figure: gqc_lab.figures:batch_loss}")
    history = pd.DataFrame({"method": ["gnts"], "seed": [0], "examples": [8], "val_loss": [1.0]})
    with pytest.raises(BadInput, match=r"figures:batch_loss: .*no column 'tokens'"):
        draw_figure(batch, rows_of(batch, METHODS[0]), history)


def test_a_share_of_a_batch_reports_on_all_that_is_finished(
    make_batch, store, tmp_path, monkeypatch, capsys
):
    for run in make_batch("seeds: 2").runs:
        finish(store, run, loss=1.0 + run.parameters["seed"])
    arguments = ["batch", "run", tmp_path / "b.yaml", "--shard", "2/2", "--runs", store.root]
    monkeypatch.setattr(sys, "argv", ["gqc", *map(str, arguments)])
    with pytest.raises(SystemExit):
        main()
    text = capsys.readouterr().out
    assert "b: 1 run: 1 kept" in text
    assert "2 [-5, 8]" in text  # 1.5, with an interval of 12.7
