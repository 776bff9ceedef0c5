"""The `gqc` command as a user meets it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gqc_lab.cli import main

NOTEBOOKS = Path(__file__).parents[1] / "fixtures" / "notebooks"
TINY = str(NOTEBOOKS / "tiny.ipynb")


def gqc(*arguments, before="", cwd=None):
    """Run the command in a new process; ``before`` is code to execute first."""
    code = f"{before}\nfrom gqc_lab.cli import main\nmain()"
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, env=environment, timeout=1000,
    )  # fmt: skip


def gqc_here(folder, monkeypatch, capsys, *arguments):
    """Run the command in this process; returns its exit code, stdout and stderr."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["gqc", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0, *capsys.readouterr()


def test_without_the_lab_extra_it_names_the_extra():
    done = gqc("--help", before="import sys; sys.modules['typer'] = None")
    assert done.returncode == 2
    assert "pip install 'gqc-kit[lab]'" in done.stderr
    assert "typer is missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_the_commands_and_imports_nothing_slow():
    slow = ["papermill", "nbformat", "pandas", "plotly", "duckdb", "scipy"]
    before = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('SLOW', [m for m in {slow} if m in sys.modules]))"
    )
    done = gqc("--help", before=before)
    assert done.returncode == 0
    for command in ("run", "batch", "runs", "gallery", "claims"):
        assert re.search(rf"^\W*{command} ", done.stdout, re.M), command
    assert "SLOW []" in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["batch", "plan"], ["batch", "status"]])
def test_planning_and_listing_do_not_wait_for_torch(arguments):
    batch = Path(__file__).parents[2] / "notebooks/batches/02_all_wrappers.yaml"
    given = [*arguments, *([str(batch)] if "batch" in arguments else [])]
    done = gqc(*given, before="import sys; sys.modules['torch'] = None")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "mehtod", "plain"], "'mehtod'='plain'; did you mean 'method'?"),
        (
            ["-p", "method", "plane"],
            "method='plane': did you mean 'plain'? expected one of plain, double, broken",
        ),
        (["-p", "scale", ".nan"], "-p scale: value=nan: expected a number"),
        (["-p", "scale", "-1"], "scale=-1.0: expected a number above 0"),
        (["-p", "seed", "1.5"], "seed=1.5: expected int"),
        (["-p", "seed=x"], "seed='x': expected int"),
        (["-f", "none.yaml"], "none.yaml: no such file"),
        (["-f", "p.yaml"], "unknown parameter 'mehtod'='plain'; did you mean 'method'?"),
        (["--runs", "taken"], "cannot write to the run store"),
        (["--jobz", "1"], "No such option"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(
    tmp_path, monkeypatch, capsys, arguments, message
):
    (tmp_path / "taken").touch()
    (tmp_path / "p.yaml").write_text("mehtod: plain")
    code, _, error = gqc_here(tmp_path, monkeypatch, capsys, "run", TINY, *arguments)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1 or "No such option" in message
    assert {path.name for path in tmp_path.iterdir()} == {"p.yaml", "taken"}


@pytest.mark.parametrize("command", ["run", "plan", "status"])
def test_a_bad_batch_file_is_refused_by_every_command(tmp_path, monkeypatch, capsys, command):
    (tmp_path / "b.yaml").write_text(f"notebook: {TINY}\ngird: {{}}")
    code, _, error = gqc_here(tmp_path, monkeypatch, capsys, "batch", command, "b.yaml")
    assert code == 2
    assert error == "gqc: b.yaml: unknown key 'gird'; did you mean 'grid'?\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_one_run_is_stored_shown_and_not_repeated(tmp_path):
    (tmp_path / "p.yaml").write_text("scale: 4.0\nrounds: 2\npause: 1e-3\n")
    (tmp_path / "later.yaml").write_text("scale: 2.0\n")
    files = ["-f", "p.yaml", "-f", "later.yaml"]
    arguments = ["run", TINY, *files, "-p", "rounds", "1", "-p", "seed=3"]
    done = gqc(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 finished" in done.stdout
    (result,) = (tmp_path / "runs").glob("*/result.json")
    content = json.loads(result.read_text())
    assert content["parameters"] == {
        "method": "plain", "seed": 3, "scale": 2.0, "rounds": 1, "pause": 0.001,
    }  # fmt: skip
    assert f"{content['results'][0]['loss']:.4g}" in done.stdout

    again = gqc(*arguments, cwd=tmp_path)
    assert again.returncode == 0
    assert "1 kept" in again.stdout


def test_a_batch_reports_fails_and_is_planned(tmp_path, monkeypatch, capsys):
    (tmp_path / "b.yaml").write_text(
        f"notebook: {TINY}\ngrid: {{method: [plain, double, broken]}}\nseeds: 2\nthreads: 1\n"
        "report: {by: [method], columns: [loss], figure: 'figure_of_test:draw'}"
    )
    (tmp_path / "figure_of_test.py").write_text(
        "import plotly.graph_objects as go\n"
        "def draw(results, history):\n"
        "    return go.Figure(go.Scatter(x=history['microbatch'], y=history['loss']))\n"
    )
    plan = gqc("batch", "plan", "b.yaml", cwd=tmp_path)
    assert plan.returncode == 0
    assert "6 runs, 0 finished, 6 to go" in plan.stdout
    assert "time left: unknown" in plan.stdout
    assert not (tmp_path / "runs").exists()

    path = "import sys; sys.path.insert(0, '.')"
    done = gqc("batch", "run", "b.yaml", "--jobs", "2", before=path, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "6 runs: 4 finished, 2 failed" in done.stdout
    assert "ValueError: this method is broken on purpose" in done.stdout
    assert re.search(r"double\W+2\W+\d\.\d+ \[", done.stdout)
    page = (tmp_path / "runs" / "b.html").read_text()
    assert "Plotly.newPlot" in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=.http", page)  # opens offline

    def here(*arguments):
        return gqc_here(tmp_path, monkeypatch, capsys, *arguments)

    code, text, _ = here("batch", "status", "b.yaml")
    assert code == 1
    assert re.search(r"4 finished\s+2 failed", text)
    assert "broken on purpose" in text
    assert re.search(r"time left: about \d+ s", here("batch", "plan", "b.yaml")[1])

    failed = next((tmp_path / "runs" / "failed").iterdir()).name
    why = here("batch", "plan", "b.yaml", "--explain", failed[:6])[1]
    assert "it failed: ValueError: this method is broken on purpose" in why
    assert "parameter method: " in why
    assert "2 rows" in here("runs", "list", "--where", "method = 'double'")[1]
    code, _, error = here("runs", "list", "--where", "metod = 1")
    assert code == 2
    assert "metod" in error
    assert "2 folders to delete" in here("runs", "gc")[1]
    assert "2 folders deleted" in here("runs", "gc", "--yes")[1]
