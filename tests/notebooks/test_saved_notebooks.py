"""What every notebook in the repository keeps to, read from its files without running it."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from notebook_files import FOLDER, NOTEBOOKS, SCRIPTS, is_paired

from gqc_lab.claims.evidence import read_answers
from gqc_lab.errors import BadInput
from gqc_lab.publish.notebooks import install_cell
from gqc_lab.publish.shown import THUMBNAILS, show_committed
from gqc_lab.runs.notebook import read_notebook
from gqc_lab.runs.parameters import parse_cell, resolve
from gqc_lab.runs.plan import read_batch

PAPER = FOLDER.parent / "paper"
BATCHES = sorted(FOLDER.glob("batches/*.yaml"))

MAX_BYTES = 400_000  # three figures with a still picture of 80 kB each, and as much again

# One that trains nothing has no parameters.
TRAINING = [p for p in NOTEBOOKS if '"parameters"' in p.read_text(encoding="utf-8")]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def test_notebooks_come_in_pairs():
    assert NOTEBOOKS
    assert [p.with_suffix("") for p in NOTEBOOKS] == [p.with_suffix("") for p in SCRIPTS]


@every_notebook
def test_the_pair_says_the_same(path):
    assert is_paired(path), f"run `jupytext --sync {path.name}` in {FOLDER.name}/"


def test_an_edit_of_one_of_a_pair_is_noticed(tmp_path):
    path = tmp_path / "pair.ipynb"
    notebook = jupytext.reads("# %% [markdown]\n# text\n\n# %%\nx = 1\n", "py:percent")
    nbformat.write(notebook, path)
    path.with_suffix(".py").write_text(jupytext.writes(notebook, "py:percent"))
    assert is_paired(path)
    path.with_suffix(".py").write_text(jupytext.writes(notebook, "py:percent").replace("1", "2"))
    assert not is_paired(path)


@every_notebook
def test_no_function_is_longer_than_ten_lines(path):
    tree = ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 10] == []


NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")


@pytest.mark.parametrize("name", ["07_norm_schedule_live", "08_vgs_alpha_live"])
def test_an_answer_that_no_claim_fills_in_has_the_numbers_of_the_saved_outputs(name):
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    [answer] = re.findall(r"^\*\*.*?(?=\n\n)", cells[0].source, re.DOTALL | re.MULTILINE)[:1]
    outputs = [o for cell in cells if cell.cell_type == "code" for o in cell.outputs]
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
    saved = {float(n) for n in NUMBER.findall("\n".join(texts))}
    told = [float(n) for n in NUMBER.findall(answer)]
    assert len(told) >= 5
    assert [n for n in told if n not in saved] == []


@every_notebook
def test_the_first_cell_is_the_one_that_installs_the_kit(path):
    cell = code_cells(path)[0]
    extra = "widgets" if "gqc_widgets" in path.read_text(encoding="utf-8") else "lab"
    assert (cell.source, cell.metadata.get("tags")) == (install_cell(extra), ["install"])


def test_the_install_cell_is_four_lines_that_pass_where_the_kit_is():
    assert len(install_cell().splitlines()) <= 4
    exec(install_cell(), {})


def test_where_the_kit_is_missing_the_cell_names_a_command_that_asks_no_index(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="gqc is missing; run: %pip install") as refusal:
        exec(install_cell(), {})
    (requirement,) = re.findall(r'%pip install "(.*)"', str(refusal.value))
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps"]
    for name in ("ADDRESS", "gqc-kit"):  # an index may have somebody else's package of that name
        done = subprocess.run(
            [*pip, requirement.replace("ADDRESS", name)], capture_output=True, text=True
        )
        assert done.returncode != 0
        assert "Invalid requirement" in done.stderr


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_parameters_are_literals_with_the_common_ones_among_them(path):
    (cell,) = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    declared = parse_cell(cell.source, path.name)  # refuses what is not a literal
    common = {name: declared[name].default for name in ("scale", "seed", "device", "dtype")}
    assert common == {"scale": "smoke", "seed": 0, "device": "auto", "dtype": "float32"}


@every_notebook
def test_saved_outputs_are_of_one_whole_run(path):
    cells = code_cells(path)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    kinds = [o.output_type for c in cells for o in c.outputs]
    assert kinds
    assert "error" not in kinds
    assert not [o for c in cells for o in c.outputs if o.get("name") == "stderr"]


@every_notebook
def test_shown_verdicts_are_the_committed_ones(path):
    saved = nbformat.read(path, as_version=4)
    now = show_committed(nbformat.read(path, as_version=4), PAPER)
    remedy = f"run `python -m gqc_lab.publish.notebooks --verdicts notebooks/{path.name}`"
    assert [c.get("outputs") for c in saved.cells] == [c.get("outputs") for c in now.cells], remedy


@pytest.mark.parametrize("name", read_answers(PAPER))
def test_a_notebook_begins_with_what_the_committed_results_answer(name):
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    place = next(i for i, c in enumerate(cells) if "claims.show_" in c.source)
    assert place <= 2  # after the title and the cell that installs
    assert (FOLDER / THUMBNAILS / f"{name}.png").is_file() or not figure_of(name)


def figure_of(name):
    return read_answers(PAPER)[name].get("figure")


@every_notebook
def test_only_what_shows_committed_results_is_left_out_of_a_run(path):
    """The id of a run does not cover cells that are tagged as evidence."""
    for cell in code_cells(path):
        if "evidence" in cell.metadata.get("tags", []):
            assert re.fullmatch(
                r'(from gqc_lab import claims\s+)?claims\.show_\w+\("\w+"\)', cell.source
            )


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_a_run_does_not_depend_on_what_is_shown_of_committed_results(path):
    assert "show_evidence" not in "".join(read_notebook(path).code)


@every_notebook
def test_the_file_is_small_and_of_no_machine(path):
    assert path.stat().st_size <= MAX_BYTES
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}  # no widget state
    assert {key for cell in notebook["cells"] for key in cell["metadata"]} <= {"tags"}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)  # base64 may spell anything
    text = json.dumps(notebook)
    private = ["/home/", "/root/", "/Users/", "/tmp/", "C:\\\\", str(Path.home()), str(FOLDER)]
    assert [p for p in private if p in text] == []


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_a_notebook_takes_every_scale_and_its_own_values(path):
    declared = read_notebook(path).declared
    own = {name: parameter.default for name, parameter in declared.items()}
    assert resolve(declared, own) == own
    assert own["scale"] == "smoke"  # what is saved and compared
    for scale in ("smoke", "laptop", "paper"):
        assert resolve(declared, {"scale": scale}) == own | {"scale": scale}
    with pytest.raises(BadInput, match="scale='lap'"):
        resolve(declared, {"scale": "lap"})


@pytest.mark.parametrize("path", BATCHES, ids=lambda p: p.stem)
def test_a_batch_can_be_planned(path):
    batch = read_batch(path)
    assert len({run.id for run in batch.runs}) == len(batch.runs) > 1


def test_the_flagship_batch_is_three_arms_by_five_seeds():
    runs = read_batch(FOLDER / "batches/22_flagship.yaml").runs
    points = {(*run.parameters["arms"], run.parameters["seed"]) for run in runs}
    arms = ("adamw, constant", "adamw, cosine", "gnts, constant")
    assert points == {(arm, seed) for arm in arms for seed in range(5)}
    assert {run.parameters["scale"] for run in runs} == {"laptop"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", "huge"),
        ("methods", ["gtns"]),
        ("methods", "gnts"),
        ("seed", -1),
        ("tokens", -5),
        ("tokens", "many"),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", "nan"),
        ("corpus", "no/such/file"),
        ("device", "quantum"),
        ("dtype", "float8"),
        ("tokns", 5),
    ],
)
def test_the_flagship_refuses_bad_values_before_it_runs(name, value):
    declared = read_notebook(FOLDER / "01_gnts_pretraining.ipynb").declared
    with pytest.raises(BadInput, match=name) as refusal:
        resolve(declared, {name: value})
    assert "\n" not in str(refusal.value)
