"""Run every notebook as it is saved and compare what it prints (nbval).

Cells tagged ``nbval-ignore-output`` (figures, progress) only have to run.  ``make notebooks`` saves
new outputs when a change is meant.

nbval runs in a pytest inside this process, which has all of its imports behind it.  Kernels are
those of runs, forked with torch loaded and on sockets of their own: ports that are free when they
are chosen may be taken when they are opened.
"""

import contextlib
import gc
import io
import tempfile
import warnings
from pathlib import Path

import nbformat
import nbval.kernel
import nbval.plugin
import pytest
from jupyter_client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from notebook_files import NOTEBOOKS

from gqc_lab.publish.notebooks import on_cpu, readable
from gqc_lab.runs.kernel import manager_class

FLAGSHIP = next(n for n in NOTEBOOKS if n.stem == "01_gnts_pretraining")
NO_LIMIT = 3600  # seconds; pytest's own timeout is the one that counts


def blocking_manager(folder, sockets):
    """The kernel manager of runs as nbval wants it, without async, and outside a batch."""
    forked = manager_class(folder, sockets, 1, is_forked=True, on_start=bool)

    class Manager(forked):
        client_factory = BlockingKernelClient
        shutdown_kernel = KernelManager.shutdown_kernel
        is_alive = KernelManager.is_alive

        def start_kernel(self, stderr, **kwargs):
            stderr.close()  # nbval would leave it open; a forked kernel writes elsewhere
            KernelManager.start_kernel(self, **kwargs)

        @property
        def kernel_spec(self):
            spec = super().kernel_spec
            spec.env = {name: value for name, value in spec.env.items() if name != "GQC_RUN_DIR"}
            return spec

    return Manager


def sanitized(cell, output):
    """What is compared of an output: as saved notebooks show it."""
    return readable(output) if isinstance(output, str) else output


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Run and compare a notebook, on the CPU: exit code and report."""
    sockets = tempfile.TemporaryDirectory(prefix="gqc")  # a short name, as sockets need
    monkeypatch.setattr(
        nbval.kernel, "KernelManager", blocking_manager(tmp_path, Path(sockets.name))
    )
    monkeypatch.setattr(nbval.plugin.IPyNbCell, "sanitize", sanitized)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")

    def run(notebook):
        nbformat.write(on_cpu(notebook), tmp_path / "notebook.ipynb")
        command = ["notebook.ipynb", "--rootdir=.", "-q", "--color=no", "-p", "no:cacheprovider"]
        command += ["-p", "no:logging"]  # it would leave a file open, for a later test to find
        command += ["--nbval", "--nbval-current-env"]
        command += [f"--nbval-kernel-startup-timeout={NO_LIMIT}", "--timeout=0"]
        report = io.StringIO()
        with contextlib.redirect_stdout(report), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nbval leaves files open
            code = pytest.main(command)
            gc.collect()  # here, not in a later test
        return code, report.getvalue()

    with sockets:
        yield run


def read(path):
    return nbformat.read(path, as_version=4)


def alone(path):
    """A parameter of its own group, which any process may take."""
    return pytest.param(path, id=path.stem, marks=pytest.mark.xdist_group(path.stem))


@pytest.mark.parametrize("path", [alone(path) for path in NOTEBOOKS])
def test_a_notebook_prints_what_it_printed(path, compare):
    code, report = compare(read(path))
    if code:
        remedy = "if the change is meant, `make notebooks` saves it"
        pytest.fail(f"{path.name} is not what was saved; {remedy}\n{report}", pytrace=False)


@pytest.mark.slow
def test_a_changed_number_in_the_flagship_is_caught(compare):
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
    code, report = compare(notebook)
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


@pytest.mark.slow
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
def test_what_the_comparison_notices(source, output, tags, code, compare):
    assert compare(notebook_of(source, output, tags))[0] == code
