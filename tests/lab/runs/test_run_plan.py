"""From a batch file to runs: the grid, the ids, and what is refused."""

import json
import re
from pathlib import Path

import pytest
from batch_cases import write_notebook

from gqc_lab.errors import BadInput
from gqc_lab.runs import plan as module
from gqc_lab.runs.notebook import read_notebook
from gqc_lab.runs.plan import read_batch, single

NOTEBOOKS = Path(__file__).parents[2] / "fixtures" / "notebooks"


@pytest.fixture
def plan(tmp_path):
    """Write a batch file for the tiny notebook and read it."""

    def make(text="", notebook=NOTEBOOKS / "tiny.ipynb"):
        file = tmp_path / "b.yaml"
        file.write_text(f"notebook: {notebook}\n{text}")
        return read_batch(file)

    return make


def points(batch):
    return [tuple(run.parameters[name] for name in run.varied) for run in batch.runs]


def test_grid_is_list_times_zip_times_product_times_seeds(plan):
    batch = plan(
        "list: [{scale: 1.0}, {scale: 2.0}]\n"
        "zip: {rounds: [1, 2], pause: [0.1, 0.2]}\n"
        "grid: {method: [plain, double]}\n"
        "seeds: 2\n"
    )
    expected = [
        (scale, rounds, pause, method, seed)
        for scale in (1.0, 2.0)
        for rounds, pause in ((1, 0.1), (2, 0.2))
        for method in ("plain", "double")
        for seed in (0, 1)
    ]
    assert points(batch) == expected
    assert len({run.id for run in batch.runs}) == len(expected)


def test_grid_wins_over_parameters_over_defaults(plan):
    batch = plan("parameters: {scale: 3.0, pause: 1e-3}\ngrid: {scale: [4.0]}\nseeds: [7]")
    (run,) = batch.runs
    assert run.parameters == {
        "method": "plain", "seed": 7, "scale": 4.0, "rounds": 3, "pause": 0.001,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["n", "mean", "low", "high", "column", "value"])
def test_a_varied_parameter_has_no_name_of_a_column_of_the_report(plan, tmp_path, name):
    """Else the batch would fail after its last run, when the table is made."""
    write_notebook(tmp_path / "own.ipynb", parameters=f"{name} = 1")
    assert plan(f"parameters: {{{name}: 2}}", tmp_path / "own.ipynb").runs
    with pytest.raises(BadInput, match=f"'{name}' is varied, and a column of the report's"):
        plan(f"grid: {{{name}: [1, 2]}}", tmp_path / "own.ipynb")


def test_same_run_has_one_id_wherever_it_is_planned(plan):
    a = plan("grid: {scale: [1, 2]}\nseeds: 2").runs
    b = plan("parameters: {scale: 2.0}\nseeds: [1]").runs
    assert b[0].id == a[3].id
    notebook = read_notebook(NOTEBOOKS / "tiny.ipynb")
    assert single(notebook, {"seed": 1, "scale": 2.0}).runs[0].id == a[3].id


def edited(tmp_path, old, new):
    text = (NOTEBOOKS / "tiny.ipynb").read_text()
    assert old in text
    path = tmp_path / "tiny.ipynb"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "is_stale"),
    [
        ("stream.random()", "stream.random() + 1", True),
        ("import time", "import time  # for pauses", False),
        ('"rounds = 3  #', '"rounds = 4  #', True),
        ('"seed = 0  # at', '"seed = 5  # at', False),  # given, so its default does not matter
        ('"outputs": []', '"outputs": [ ]', False),
    ],
)
def test_id_follows_code_and_parameters_only(plan, tmp_path, old, new, is_stale):
    before = plan("seeds: [1]").runs[0].id
    after = plan("seeds: [1]", edited(tmp_path, old, new)).runs[0].id
    assert (before != after) is is_stale


def test_where_the_kit_comes_from_is_not_part_of_the_id(plan, tmp_path):
    content = json.loads((NOTEBOOKS / "tiny.ipynb").read_text())
    without = plan("seeds: [1]").runs[0].id
    ids = set()
    for tags in (["install"], []):
        for kit in ("", "git+https://host/owner/name"):
            cell = {"cell_type": "code", "source": f"kit = {kit!r}", "metadata": {"tags": tags}}
            cells = [cell, *content["cells"]]
            (tmp_path / "tiny.ipynb").write_text(json.dumps(content | {"cells": cells}))
            ids.add(plan("seeds: [1]", tmp_path / "tiny.ipynb").runs[0].id)
    assert without in ids
    assert len(ids) == 3


def test_changed_data_make_runs_stale(plan, tmp_path):
    (tmp_path / "corpus.txt").write_text("a")
    before = plan("data: [corpus.txt]").runs[0].id
    assert plan("data: [corpus.txt]").runs[0].id == before
    (tmp_path / "corpus.txt").write_text("b")
    assert plan("data: [corpus.txt]").runs[0].id != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grdi: {}", "unknown key 'grdi'; did you mean 'grid'"),
        ("grid: {mehtod: [plain]}", "unknown parameter 'mehtod'='plain'; did you mean 'method'"),
        ("grid: {method: plain}", "method='plain': expected a list of values"),
        ("grid: {method: []}", "expected a list of values"),
        ("grid: {method: [plane]}", "method='plane': did you mean 'plain'"),
        ("grid: {seed: [1, 1]}", r"two runs have the same parameters, \{'seed': 1\}"),
        ("grid: {seed: [1]}\nseeds: 2", "'seed' is varied twice"),
        ("zip: {seed: [1, 2], scale: [1.0]}", "seed has 2, scale has 1"),
        ("seeds: 0", "seeds: 0: expected a count > 0"),
        ("seeds: 1.5", "seeds: 1.5"),
        ("timeout: -1", "timeout: -1: expected a number > 0"),
        ("threads: 1.5", "threads: 1.5: expected a whole number > 0"),
        ("grid: []", r"grid: \[\]: expected a mapping"),
        ("list: 0", "list: 0: expected a list of mappings"),
        ("timeout: .nan", "timeout=nan"),
        ("report: {colums: [a]}", "report: unknown key 'colums'; did you mean 'columns'"),
        ("report: {figure: nothing}", "expected package.module:function"),
        ("report: {figure: 'nothing:'}", "expected package.module:function"),
        ("data: [no-such-thing]", "data: 'no-such-thing'"),
        ("parameters: {scale: .nan}", "scale=nan"),
        ("list: [1]", "expected a list of mappings"),
        ("resources: {GPU: }", "resources: GPU: None: expected a number > 0"),
        ("resources: {GPU: .nan}", "GPU=nan"),
        ("resources: [GPU]", r"resources: \['GPU'\]: expected a mapping"),
        ("cost: {flops: a:b}", "cost: expected flops_per_second too"),
        ("cost: {flops: a:b, flops_per_second: 0}", "flops_per_second: 0: expected a number > 0"),
        ("cost: {flops_per_second: 1}", "cost: flops: None: expected package.module:function"),
        ("cost: {flop: a:b}", "cost: unknown key 'flop'; did you mean 'flops'"),
    ],
)
def test_mistakes_are_named_in_one_line(plan, text, message):
    with pytest.raises(BadInput, match=message) as error:
        plan(text)
    assert "\n" not in str(error.value)
    assert "b.yaml: " in str(error.value)


EMPTY = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.ipynb", None, "expected an existing .ipynb"),
        ("a.txt", "", "expected an existing .ipynb"),
        ("a.py", "x = 1", "no such notebook; make it with `jupytext"),
        ("a.ipynb", "{", "not a Jupyter notebook"),
        ("a.ipynb", "[]", "not a Jupyter notebook"),
        ("a.ipynb", '{"cells": []}', "not a Jupyter notebook"),
        ("a.ipynb", EMPTY, "0 cells are tagged `parameters`"),
    ],
)
def test_what_is_not_a_notebook_with_parameters_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=message):
        read_notebook(tmp_path / name)


def test_pair_has_to_be_in_sync(tmp_path):
    jupytext = pytest.importorskip("jupytext")
    path = tmp_path / "tiny.ipynb"
    path.write_text((NOTEBOOKS / "tiny.ipynb").read_text())
    script = jupytext.writes(jupytext.read(path), "py:percent")
    path.with_suffix(".py").write_text(script)
    assert read_notebook(path.with_suffix(".py")).path == path.resolve()
    path.with_suffix(".py").write_text(script.replace("stream.random()", "1.0"))
    with pytest.raises(BadInput, match="differ; run `jupytext --sync"):
        read_notebook(path)


@pytest.mark.parametrize("odd", ["x = 'a\u2028b'", "x = 1\x0c\ny = 2", "x = 1\r\ny = 2"])
def test_odd_line_ends_are_in_sync(tmp_path, odd):
    jupytext = pytest.importorskip("jupytext")
    path = tmp_path / "odd.ipynb"
    write_notebook(path, odd)
    script = jupytext.writes(jupytext.read(path), "py:percent")
    path.with_suffix(".py").write_text(script.replace("\r\n", "\n").replace("\n", "\r\n"))
    assert read_notebook(path).declared["seed"].default == 0


def test_no_parameter_is_called_as_the_store_calls_the_id(tmp_path):
    text = (NOTEBOOKS / "tiny.ipynb").read_text().replace("rounds = 3", "run = 3")
    (tmp_path / "n.ipynb").write_text(text)
    with pytest.raises(BadInput, match="parameter 'run': the store calls a run's id so"):
        read_notebook(tmp_path / "n.ipynb")


def test_parameters_of_a_pair_may_differ_and_those_of_the_notebook_count(tmp_path):
    """As after a steered run, whose notebook was saved with ``interactive = True``."""
    jupytext = pytest.importorskip("jupytext")
    path = tmp_path / "tiny.ipynb"
    path.write_text((NOTEBOOKS / "tiny.ipynb").read_text())
    script = jupytext.writes(jupytext.read(path), "py:percent")
    changed = re.sub(r"^seed = \d+", "seed = 41", script, flags=re.M)
    assert changed != script
    path.with_suffix(".py").write_text(changed)
    assert read_notebook(path).declared["seed"].default == 0


def test_a_large_batch_hashes_its_notebook_and_data_once(plan, monkeypatch):
    """What makes ten thousand runs affordable, without a clock: bench_store.py has the seconds."""
    hashed = []
    for name in ("source_hashes", "data_hashes"):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=function: (hashed.append(f), f(*a))[1])
    batch = plan("seeds: 500\ngrid: {method: [plain, double]}")
    assert len({run.id for run in batch.runs}) == 1000
    assert len(hashed) == 2


def test_ids_and_inputs_are_plain_values(plan):
    run = plan().runs[0]
    assert len(run.id) == 16
    assert int(run.id, 16) >= 0
    assert json.loads(json.dumps(run.inputs)) == run.inputs
