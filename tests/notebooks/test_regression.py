"""Run every notebook as it is saved and compare what it prints (nbval).

Cells tagged ``nbval-ignore-output`` (figures, progress) only have to run.  Each notebook is run in
a pytest of its own, two at a time, so that neither this process's settings nor xdist matter, and
its kernel listens on sockets in a folder of its own: ports that are free when they are chosen may
be taken when they are opened.
``make notebooks`` saves new outputs when a change is meant.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from gqc_lab.publish.notebooks import on_cpu

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
FLAGSHIP = next(n for n in NOTEBOOKS if n.stem == "01_gnts_pretraining")


NO_PORTS = """
from functools import partial
from nbval import kernel

kernel.KernelManager = partial(kernel.KernelManager, transport="ipc")
"""


def compare(notebook, folder):
    """Run and compare ``notebook``, on the CPU: exit code and report."""
    path = folder / "notebook.ipynb"
    nbformat.write(on_cpu(notebook), path)
    (folder / "conftest.py").write_text(NO_PORTS)
    one_thread = {"OMP_NUM_THREADS": "1", "PLOTLY_RENDERER": "plotly_mimetype"}
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", path.name]
    command += ["-q", "--color=no", "-p", "no:xdist", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | one_thread,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return ran.returncode, ran.stdout + ran.stderr


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="module")
def comparisons(request, tmp_path_factory):
    """Comparisons under way, by path: of the notebooks that this session asks for."""
    items = [i for i in request.session.items if i.path == request.path and hasattr(i, "callspec")]
    asked = {i.callspec.params["path"] for i in items if "path" in i.callspec.params}
    with ThreadPoolExecutor(max_workers=2) as pool:
        folder = tmp_path_factory.mktemp
        yield {p: pool.submit(compare, read(p), folder(p.stem)) for p in sorted(asked)}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_prints_what_it_printed(path, comparisons):
    code, report = comparisons[path].result()
    if code:
        remedy = "if the change is meant, `make notebooks` saves it"
        pytest.fail(f"{path.name} is not what was saved; {remedy}\n{report}", pytrace=False)


@pytest.mark.slow
def test_a_changed_number_in_the_flagship_is_caught(tmp_path):
    notebook = read(FLAGSHIP)
    (table,) = [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    loss = next(word for word in table["text/plain"].split() if word.count(".") == 1)
    changed = loss[:-1] + str((int(loss[-1]) + 1) % 10)  # by one in the last digit
    table["text/plain"] = table["text/plain"].replace(loss, changed, 1)
    code, report = compare(notebook, tmp_path)
    assert code == 1
    assert "1 failed" in report
    assert loss in report
    assert changed in report


def notebook_of(source, output, tags=()):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)}, execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=output)]
    return nbformat.v4.new_notebook(cells=[cell])


ASK_TRANSPORT = """import json
from ipykernel.connect import get_connection_info
print(json.loads(get_connection_info())["transport"])"""


@pytest.mark.parametrize(
    ("source", "output", "tags", "code"),
    [
        ("print(1.25)", "1.25\n", (), 0),
        ("print(1.25)", "1.26\n", (), 1),
        ("print(1.25)", "1.26\n", ("nbval-ignore-output",), 0),
        ("print(1 / 0)", "1.25\n", ("nbval-ignore-output",), 1),
        (ASK_TRANSPORT, "ipc\n", (), 0),
    ],
    ids=["same", "changed", "not compared", "fails though not compared", "no port is opened"],
)
def test_what_the_comparison_notices(source, output, tags, code, tmp_path):
    assert compare(notebook_of(source, output, tags), tmp_path)[0] == code
