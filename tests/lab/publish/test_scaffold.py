"""A new experiment runs as it is written, in a checkout and elsewhere, and overwrites nothing."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import jupytext
import pandas as pd
import pytest
import yaml
from notebook_files import is_paired
from same_runs import assert_same_run

from gqc_lab.claims.rules import read_claims
from gqc_lab.cli import main
from gqc_lab.errors import BadInput
from gqc_lab.publish.scaffold import write_experiment
from gqc_lab.runs.notebook import read_notebook
from gqc_lab.runs.plan import read_batch
from gqc_lab.runs.report import summarize_batch

ROOT = Path(__file__).parents[3]


@pytest.fixture
def made(tmp_path):
    return write_experiment("batch_noise", "Does a larger\n batch help?", tmp_path / "new")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look themselves up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[path.stem]
    return module


def test_a_grid_over_thresholds_has_a_row_for_each(made):
    """The guide writes it so; the table had one mean over all thresholds."""
    grid = "{methods: [[gnts]], threshold: [0.4, 0.6]}"
    text = made.batch.read_text().replace("{methods: [[adamw], [gnts]]}", grid)
    made.batch.write_text(text.replace("seeds: 5", "seeds: 2"))
    batch = read_batch(made.batch)
    found = {"method": "gnts", "accuracy": 0.9, "microbatches": 100}
    losses = [1.0, 2.0, 5.0, 6.0]
    rows = [
        {"run": r.id, **r.parameters, **found, "val_loss": loss}
        for r, loss in zip(batch.runs, losses, strict=True)
    ]
    summary = summarize_batch(batch, pd.DataFrame(rows)).query("column == 'val_loss'")
    assert dict(zip(summary["threshold"], summary["mean"], strict=True)) == {"0.4": 1.5, "0.6": 5.5}
    assert summary["low"].notna().all()


def test_its_files_fit_together(made, tmp_path):
    names = sorted(p.relative_to(tmp_path / "new").as_posix() for p in made.paths)
    assert names == [
        "01_batch_noise.ipynb",
        "01_batch_noise.py",
        "batch_noise.py",
        "batches/01_batch_noise.yaml",
    ]
    assert is_paired(made.notebook)
    batch = read_batch(made.batch)
    assert (len(batch.runs), batch.runs[0].parameters["scale"]) == (10, "laptop")
    assert batch.report.by == ()
    assert "batch_noise" in batch.runs[0].inputs["source"]  # an edit of it makes runs stale
    declared = read_notebook(made.notebook).declared
    assert declared["seed"].default == 0
    with pytest.raises(BadInput, match="methods='gtns': did you mean 'gnts'"):
        declared["methods"].check(["gtns"])
    (tmp_path / "claims.yaml").write_text(made.claim)
    assert read_claims(tmp_path / "claims.yaml")[0].statement == "Does a larger batch help?"


def test_the_experiment_learns_and_resumes_exactly(made):
    module = load(made.notebook.parent / "batch_noise.py")
    for method in module.METHODS:
        config = module.config("smoke", method, examples=3200)
        whole, first, second = (module.build(config) for _ in range(3))
        list(whole)
        for _ in range(37):
            next(first)
        second.load_state_dict(first.state_dict())
        list(second)
        assert_same_run(whole, second)
        assert whole.summary()["accuracy"] > 0.7  # 0.1 at the start
    with pytest.raises(ValueError, match="did you mean 'gnts'"):
        module.config("smoke", "gtns")
    with pytest.raises(ValueError, match="lr=nan: expected a number above 0"):
        module.config("smoke", lr=float("nan"))


def test_in_a_checkout_files_go_to_their_places_and_keep_the_style(tmp_path):
    (tmp_path / "notebooks/gqc_lab/studies").mkdir(parents=True)
    (tmp_path / "notebooks/07_before.ipynb").touch()
    made = write_experiment("ours", folder=tmp_path)
    assert made.notebook == tmp_path / "notebooks/08_ours.ipynb"
    assert "from gqc_lab.studies import ours" in made.notebook.with_suffix(".py").read_text()
    assert yaml.safe_load(made.batch.read_text())["notebook"] == "../08_ours.ipynb"
    module = tmp_path / "notebooks/gqc_lab/studies/ours.py"
    # Import order hangs on what else of the package is there.
    for command in (["check", "--ignore", "I001"], ["format", "--check"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--config", ROOT / "pyproject.toml"]
        found = subprocess.run([*arguments, module], cwd=tmp_path, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


def test_nothing_is_overwritten_and_bad_names_are_refused(made):
    module = made.notebook.parent / "batch_noise.py"
    module.write_text("mine")
    with pytest.raises(BadInput, match=r"batch_noise\.py: is there already"):
        write_experiment("batch_noise", folder=made.notebook.parent)
    assert module.read_text() == "mine"
    assert not (made.notebook.parent / "02_batch_noise.ipynb").exists()
    for name in ("Batch", "1st", "a-b", "class", ""):
        with pytest.raises(BadInput, match="expected a name of lower case letters"):
            write_experiment(name, folder=made.notebook.parent)
    (made.notebook.parent / "ours").mkdir()
    with pytest.raises(BadInput, match="ours: is there already"):
        write_experiment("ours", folder=made.notebook.parent)
    for name in ("torch", "json"):
        with pytest.raises(BadInput, match="would hide the module"):
            write_experiment(name, folder=made.notebook.parent)


def test_any_question_makes_valid_files(tmp_path):
    question = r'What: does """" do, or \u or {a: #b}?'
    made = write_experiment("odd", question, tmp_path)
    assert load(tmp_path / "odd.py").__doc__.startswith(question)
    (tmp_path / "claims.yaml").write_text(made.claim)
    assert read_claims(tmp_path / "claims.yaml")[0].statement == question


def test_a_grid_over_fields_of_the_config_reaches_them(made, tmp_path):
    grid = "{methods: [[gnts]], threshold: [0.5, 1], width: [16], examples: [800]}"
    text = made.batch.read_text().replace("grid: {methods: [[adamw], [gnts]]}", f"grid: {grid}")
    made.batch.write_text(text.replace("seeds: 5", "seeds: 1"))
    chosen = [run.parameters for run in read_batch(made.batch).runs]
    assert [p["threshold"] for p in chosen] == [0.5, 1.0]
    declared = read_notebook(made.notebook).declared
    with pytest.raises(BadInput, match="width=0: expected"):
        declared["width"].check(0)
    cells = jupytext.read(made.notebook).cells
    (source,) = [cell.source for cell in cells if "experiments = [" in cell.source]
    module = load(made.notebook.parent / "batch_noise.py")
    values = {**{k: p.default for k, p in declared.items()}, **chosen[1]}
    values |= {"batch_noise": module, "fields": dataclasses.fields}
    exec(source.split("for experiment")[0], values)
    (experiment,) = values["experiments"]
    assert (experiment.config.threshold, experiment.config.width) == (1.0, 16)
    assert experiment.config.batch_size == 8  # not in the grid


@pytest.mark.slow
def test_by_command_from_nothing_to_a_finished_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gqc", "new", "experiment", "tiny_one", "--to", "mine"])
    with pytest.raises(SystemExit) as end:
        main()
    out = capsys.readouterr().out
    assert (end.value.code or 0, "next: gqc run mine/01_tiny_one.ipynb" in out) == (0, True)
    monkeypatch.setattr(sys, "argv", ["gqc", "run", "mine/01_tiny_one.ipynb"])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code or 0, "1 run: 1 finished" in capsys.readouterr().out) == (0, True)
