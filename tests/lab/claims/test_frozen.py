"""Freezing runs, the appendix about them, printed figures and the commands, without training."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from gqc_lab.claims import Frozen, freeze, load_frozen
from gqc_lab.claims.appendix import budget, compared, describe_age, machines, tables, totals
from gqc_lab.cli import main
from gqc_lab.publish.paper_figures import print_figures
from gqc_lab.runs import BadInput
from gqc_lab.runs.plan import read_batch
from gqc_lab.runs.store import Store, write_json

NOTEBOOKS = Path(__file__).parents[2] / "fixtures" / "notebooks"
STYLE = Path(__file__).parents[3] / "paper" / "gqc.mplstyle"
BATCH = "notebook: ../tiny.ipynb\ngrid: {method: [plain, double]}\nseeds: 3\n"
PLACE = {
    "platform": "Linux",
    "cores": 2,
    "threads": 1,
    "python": "3.11",
    "packages": {"torch": "2"},
}
CLAIMS = """
- id: doubling
  group: Only
  statement: doubling doubles
  source: this test
  notebook: tiny
  scale: smoke
  parts:
    - name: ratio of the losses
      batch: tiny-batch
      value: max(loss)
      compare: {by: method, of: double, against: plain, ratio: true}
      holds: "> 1.9"
"""
FIGURES = """
losses:
  figure: loss_against
  batch: tiny-batch
  table: history
  where: method == "plain"
  arguments: {x: microbatch, y: loss}
"""


def finish(store, run, started=0.0, loss=None, **changed):
    """Store ``run`` as finished, without executing it."""
    folder = store.partial(run.id)
    folder.mkdir(parents=True)
    parameters = run.parameters
    common = {"notebook": "tiny", "parameters": parameters}
    factor = 2.0 if parameters["method"] == "double" else 1.0
    kind = {"method": parameters["method"], "seed": parameters["seed"]}
    rows = [
        {**kind, "microbatch": i, "loss": factor * (1 + parameters["seed"] + i)} for i in range(3)
    ]
    pd.DataFrame(rows).to_parquet(folder / "history.parquet", index=False)
    content = {"run": run.id, **common, "results": [{"loss": loss or rows[-1]["loss"]}], "info": {}}
    write_json(folder / "result.json", content)
    record = {"id": run.id, **common, "inputs": run.inputs, "environment": PLACE}
    store.publish(run.id, {**record, "started": started, "seconds": 60.0, **changed})


@pytest.fixture
def project(tmp_path):
    """A project of one small batch, all of it run."""
    batches, paper = tmp_path / "notebooks" / "batches", tmp_path / "paper"
    for folder in (batches, paper):
        folder.mkdir(parents=True)
    shutil.copy(NOTEBOOKS / "tiny.ipynb", tmp_path / "notebooks")
    shutil.copy(STYLE, paper)
    (batches / "tiny-batch.yaml").write_text(BATCH)
    (paper / "claims.yaml").write_text(CLAIMS)
    (paper / "results.yaml").write_text("tiny-batch: {columns: [method, seed, microbatch, loss]}")
    (paper / "figures.yaml").write_text(FIGURES)
    store = Store(tmp_path / "runs")
    for run in read_batch(batches / "tiny-batch.yaml").runs:
        finish(store, run)
    return tmp_path


def batch_of(project):
    return read_batch(project / "notebooks" / "batches" / "tiny-batch.yaml")


def gqc(project, monkeypatch, capsys, *arguments):
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["gqc", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0, *capsys.readouterr()


def test_what_is_asked_for_is_frozen_and_sealed(project):
    rows = "microbatch = 2"
    frozen = freeze(batch_of(project), project / "runs", project / "r", ["seed", "loss"], rows)
    assert list(frozen.history) == ["run", "seed", "loss"]
    assert len(frozen.history) == len(frozen.results) == len(frozen.runs) == 6
    assert all(run["is_current"] for run in frozen.runs)
    assert load_frozen(project / "r")["tiny-batch"].fingerprint == frozen.fingerprint
    without = freeze(batch_of(project), project / "runs", project / "r", [])
    assert without.history.empty
    assert sorted(p.name for p in without.folder.iterdir()) == ["results.parquet", "runs.json"]


@pytest.mark.parametrize("lost", ["both", "validation", "neither"])
def test_rows_that_would_hide_a_run_that_diverged_are_refused(project, lost):
    """In a history NaN is no value, as is that of a record that was not evaluated."""
    batch, store, target = batch_of(project), Store(project / "runs"), project / "r"
    shutil.rmtree(store.root)
    for run in batch.runs:
        seed, nan = run.parameters["seed"], float("nan")
        # Each run has trained two methods; the second diverges in that of seed 1.
        loss, val_loss = [4.0, 3.0, 2.0, 1.0] * 2, [nan, 2.5, nan, 1.5] * 2
        if seed == 1 and lost != "neither":
            val_loss[-1] = nan
            loss[-2:] = [nan, nan] if lost == "both" else loss[-2:]
        rows = {"microbatch": [1, 2, 3, 4] * 2, "loss": loss, "val_loss": val_loss}
        store.partial(run.id).mkdir(parents=True)
        pd.DataFrame({**rows, "seed": seed}).to_parquet(store.partial(run.id) / "history.parquet")
        common = {"notebook": "tiny", "parameters": run.parameters}
        results = [{"val_loss": val_loss[3]}, {"val_loss": val_loss[7]}]
        content = {"run": run.id, **common, "results": results, "info": {}}
        write_json(store.partial(run.id) / "result.json", content)
        record = {"id": run.id, **common, "inputs": run.inputs, "environment": PLACE}
        store.publish(run.id, {**record, "started": 0.0, "seconds": 1.0})

    def frozen(rows):
        return freeze(batch, store.root, target, ["seed", "microbatch", "val_loss"], rows).history

    assert len(frozen("microbatch % 2 = 0")) == 6 * 4  # keeps the end of each
    if lost == "neither":
        assert len(frozen("val_loss IS NOT NULL")) == 6 * 4
        return
    name, more = ("loss", "loss IS NULL") if lost == "both" else ("val_loss", "microbatch = 4")
    with pytest.raises(BadInput, match=rf"ended with {name} = NaN.* add OR {more} to rows"):
        frozen("val_loss IS NOT NULL")
    history = frozen(f"val_loss IS NOT NULL OR {more}")
    assert history[history["seed"] == 1]["val_loss"].isna().any()
    assert list(history) == ["run", "seed", "microbatch", "val_loss"]


def test_runs_of_an_older_code_are_taken_and_told(project):
    store, batch = Store(project / "runs"), batch_of(project)
    gone, older = batch.runs[0], "0" * 16
    shutil.rmtree(store.folder(gone.id))
    with pytest.raises(BadInput, match=r"no finished run of \{'method': 'plain', 'seed': 0\}"):
        freeze(batch, store.root, project / "r")
    finish(store, type(gone)(older, gone.parameters, gone.varied, gone.inputs))
    runs = freeze(batch, store.root, project / "r").runs
    assert [run["is_current"] for run in runs] == [False, *[True] * 5]
    assert runs[0]["id"] == older


def test_frozen_runs_stay_where_the_store_has_none(project):
    batch, store, target = batch_of(project), Store(project / "runs"), project / "r"
    whole = freeze(batch, store.root, target)
    for run in batch.runs[:-1]:
        shutil.rmtree(store.folder(run.id))
    again = freeze(batch, store.root, target)
    assert [r["id"] for r in again.runs] == [run.id for run in batch.runs]
    by = ["run", "microbatch"]
    pd.testing.assert_frame_equal(
        again.history.sort_values(by, ignore_index=True),
        whole.history.sort_values(by, ignore_index=True),
    )
    shutil.rmtree(store.folder(batch.runs[-1].id))
    nothing_new = freeze(batch, store.root, target)
    assert sorted(nothing_new.results["run"]) == sorted(whole.results["run"])
    run = batch.runs[0]
    finish(store, run, started=9.0)
    first = freeze(batch, store.root, target).runs[0]
    assert (first["id"], first["started"]) == (run.id, 9.0)  # the store's is newer
    with pytest.raises(BadInput, match="column seed is not in both"):
        freeze(batch, store.root, target, ["loss", "microbatch", "method"])


def test_a_present_frozen_run_is_better_than_an_old_stored_one(project):
    batch, store, target = batch_of(project), Store(project / "runs"), project / "r"
    freeze(batch, store.root, target)
    gone = batch.runs[0]
    shutil.rmtree(store.folder(gone.id))
    finish(store, type(gone)("0" * 16, gone.parameters, gone.varied, gone.inputs), started=9.0)
    first = freeze(batch, store.root, target).runs[0]
    assert (first["id"], first["is_current"]) == (gone.id, True)


def test_freezing_again_mends_what_was_damaged(project):
    batch, store, target = batch_of(project), Store(project / "runs"), project / "r"
    whole = freeze(batch, store.root, target)
    (whole.folder / "results.parquet").write_bytes(b"damaged")
    shutil.rmtree(store.folder(batch.runs[0].id))
    with pytest.raises(BadInput, match="no finished run of"):  # nothing of it can be kept
        freeze(batch, store.root, target)
    finish(store, batch.runs[0])
    assert freeze(batch, store.root, target).fingerprint == whole.fingerprint


def test_what_cannot_be_frozen_leaves_what_is_frozen(project):
    batch, store, target = batch_of(project), Store(project / "runs"), project / "r"
    whole = freeze(batch, store.root, target)
    (whole.folder / ".ipynb_checkpoints").mkdir()
    assert freeze(batch, store.root, target).fingerprint == whole.fingerprint
    run = batch.runs[1]
    shutil.rmtree(store.folder(run.id))
    finish(store, run, loss="diverged")
    with pytest.raises(BadInput, match=r"tiny-batch: results\.parquet: .*loss"):
        freeze(batch, store.root, target)
    assert load_frozen(target)["tiny-batch"].fingerprint == whole.fingerprint
    assert [place.name for place in target.iterdir()] == ["tiny-batch"]


def test_a_history_that_is_not_sealed_is_not_read(project):
    frozen = freeze(batch_of(project), project / "runs", project / "r", [])
    frozen.results.to_parquet(frozen.folder / "history.parquet")
    assert load_frozen(project / "r")["tiny-batch"].history.empty


@pytest.mark.parametrize("plan", ["", "# none yet"])
def test_an_empty_plan_lists_nothing(project, monkeypatch, capsys, plan):
    (project / "paper" / "results.yaml").write_text(plan)
    code, out, _ = gqc(project, monkeypatch, capsys, "freeze", "--list")
    assert (code, out) == (0, "")


def test_an_unknown_column_is_named(project):
    with pytest.raises(BadInput, match="tiny-batch: no history column lost"):
        freeze(batch_of(project), project / "runs", project / "r", ["seed", "lost"])


def test_the_appendix_counts_runs_and_machines(project):
    freeze(batch_of(project), project / "runs", project / "r")
    results = load_frozen(project / "r")
    assert totals(results) == {"batches": 1, "runs": 6, "hours": pytest.approx(0.1)}
    assert machines(results) == ["Linux, 1 of 2 cores a run, Python 3.11, torch 2"]
    place = {**PLACE, "processor": "Abacus 3"}
    known = Frozen("other", Path(), {"environments": [PLACE, place]})
    assert machines({"other": known})[1].startswith("Linux, Abacus 3, 1 of 2 cores")
    plan = {"tiny-batch": {"trained": "a line, 2 parameters", "tuning": "two runs"}}
    written = tables(results, plan)
    assert r"\newcommand{\numRuns}{6}" in written
    experiments, repetition = written.split(r"\newcommand{\batchTable}")
    assert r"\newcommand{\experimentTable}" in experiments
    assert "tiny-batch & a line, 2 parameters & " in experiments
    assert "tiny-batch & 6 & 0 to 2 & 6 & two runs" in repetition


def test_results_of_an_older_code_are_told(project):
    batch = batch_of(project)
    results = {"tiny-batch": freeze(batch, project / "runs", project / "r")}
    ids = [run.id for run in batch.runs]
    assert describe_age(results, {"tiny-batch": ids}, "of it") == ""
    when = (
        "were made with an older version of the code (1970-01-01); a test repeats the beginnings of"
        " two with this one."
    )
    one, every = {"tiny-batch": ids[1:]}, {"tiny-batch": []}
    some = describe_age(results, one, "of it")
    assert some == f"1 of the 6 runs of it (tiny-batch) {when}"
    assert describe_age(results, every, "of it") == f"All 6 runs of it {when}"
    three = dict.fromkeys(("a", "b", "c"), results["tiny-batch"])
    known = {"a": ids, "b": every["tiny-batch"], "c": every["tiny-batch"]}
    assert f"12 of the 18 runs of it (all but a) {when}" == describe_age(three, known, "of it")


def frozen_of(rows):
    results = pd.DataFrame(rows)
    runs = [{"id": run} for run in dict.fromkeys(results["run"])]
    frozen = Frozen("batch", Path(), {"runs": runs[::-1]})
    frozen.__dict__["results"] = results
    return frozen


def test_what_was_trained_is_read_from_the_results():
    rows = (("b", "gnts", 4096), ("a", "adamw", 1024), ("a", "adamw", 1024))
    columns = ["run", "method", "tokens"]
    frozen = frozen_of([dict(zip(columns, row, strict=True)) for row in rows])
    frozen.results["microbatches"] = frozen.results["tokens"] / 4
    frozen.results["weight"] = 0.5
    assert budget(frozen) == "1,024 to 4,096 tokens, 256 to 1,024 microbatches"
    assert compared(frozen, ["method"]) == "adamw; gnts"  # in the order of the runs
    assert compared(frozen, ["method", "weight", "gone"]) == "method: adamw; gnts. weight: 0.5"
    nothing = frozen_of([{"run": "a", "loss": 1.0}])
    assert (budget(nothing), compared(nothing, ["method"])) == ("-", "-")


def test_figures_are_the_same_bytes_and_name_their_sources(project, tmp_path):
    frozen = freeze(batch_of(project), project / "runs", project / "paper" / "results")
    ((name, files),) = print_figures(project / "paper", to=tmp_path / "one")
    assert name == "losses"
    assert [file.suffix for file in files] == [".pdf", ".svg", ".png"]
    ((_, again),) = print_figures(project / "paper", ["losses"], to=tmp_path / "two")
    for first, second in zip(files, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
        if first.suffix != ".svg":
            assert frozen.fingerprint.encode() in first.read_bytes()
    assert b"/Type3" not in files[0].read_bytes()  # fonts are embedded as TrueType
    with pytest.raises(BadInput, match="'loses': no such figure; did you mean 'losses'"):
        list(print_figures(project / "paper", ["loses"]))


def test_from_runs_to_verdicts_by_command(project, monkeypatch, capsys):
    code, out, _ = gqc(project, monkeypatch, capsys, "freeze", "--list")
    assert (code, out.strip()) == (0, "notebooks/batches/tiny-batch.yaml")
    assert gqc(project, monkeypatch, capsys, "claims", "--check")[0] == 2  # nothing committed
    code, out, _ = gqc(project, monkeypatch, capsys, "freeze")
    assert (code, "tiny-batch: 6 runs\n" in out) == (0, True)
    code, out, _ = gqc(project, monkeypatch, capsys, "claims")
    assert (code, "1 claims: 1 reproduced" in out) == (0, True)
    assert ": reproduced\n" in out
    assert "n = 3: holds" in (project / "paper" / "build" / "claims.md").read_text()
    assert gqc(project, monkeypatch, capsys, "claims", "--check")[0] == 0
    path = project / "paper" / "verdicts.json"
    verdicts = json.loads(path.read_text())
    verdicts[0]["verdict"] = "refuted"
    path.write_text(json.dumps(verdicts))
    code, _, error = gqc(project, monkeypatch, capsys, "claims", "--check")
    assert (code, "committed as 'refuted', the results give 'reproduced'" in error) == (1, True)
    code, out, _ = gqc(project, monkeypatch, capsys, "figures")
    assert (code, "losses: paper/build/figures/losses.pdf" in out) == (0, True)
    code, _, error = gqc(project, monkeypatch, capsys, "freeze", "tiny-bach")
    assert (code, "did you mean 'tiny-batch'" in error) == (2, True)
