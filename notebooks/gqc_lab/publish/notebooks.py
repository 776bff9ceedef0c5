"""Saved notebooks: run them as they are compared, and keep their files small and the same.

``python -m gqc_lab.publish.notebooks notebooks/*.ipynb`` (``make notebooks``) brings each pair of
.py and .ipynb together, runs it with the parameters that it states, on the CPU, and saves the
outputs except what changes from run to run: progress bars, widget state, times.  Where a browser
is found, every figure is also saved as a still picture, for viewers that run no scripts (GitHub).

``python -m gqc_lab.publish.notebooks --verdicts notebooks/*.ipynb`` runs nothing: it brings what
saved outputs show of committed results up to what ``paper`` holds, and the thumbnails with it.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import yaml
from jupytext.cli import jupytext as run_jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

from gqc_lab.claims.evidence import PAPER
from gqc_lab.publish.shown import CALL, show_committed, smaller, write_thumbnail
from gqc_lab.runs.kernel import CAN_FORK
from gqc_lab.runs.notebook import is_passing

HEADINGS = yaml.safe_load((files("gqc_lab.publish") / "templates/columns.yaml").read_text("utf-8"))
CELL = re.compile(r"(<t[hd][^>]*>)([^<]*)(</t[hd]>)")
LONG = re.compile(r">(-?\d+\.\d{6,}|-?[\d.]+e[+-]\d+|-?\d{5,}(?:\.\d+)?)<")


def install_cell(extra: str = "lab") -> str:
    """Return the first cell of every notebook, which says how to install the kit if it is missing.

    It is tagged ``install`` and not part of a run's id.  ``extra``: "widgets" where it shows some.
    """
    return fill_template("install.py", {"extra": extra}).rstrip("\n")


def fill_template(name: str, words: Mapping[str, str]) -> str:
    """Return ``templates/<name>.txt`` with its ``$words`` filled in."""
    text = files("gqc_lab.publish").joinpath("templates", f"{name}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(words)


def on_cpu(notebook: NotebookNode) -> NotebookNode:
    """Set ``device = "auto"`` to the CPU, where numbers can be compared."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub(r'^device = "auto"', 'device = "cpu"', cell.source, flags=re.M)
    return notebook


def refresh(notebook: Path, renderer: str) -> None:
    """Run ``notebook`` (.ipynb), after it is synchronised with its .py, and save its outputs.

    Raises: nbclient.exceptions.CellExecutionError: a cell failed; the file keeps its old outputs.
    """
    run_jupytext(["--quiet", "--sync", str(notebook)])
    content = nbformat.read(notebook, as_version=4)
    running = on_cpu(nbformat.from_dict(content))
    os.environ["PLOTLY_RENDERER"] = renderer
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums split over threads differ in a last bit
    options: dict[str, Any] = {"resources": {"metadata": {"path": str(notebook.parent)}}}
    options |= {"record_timing": False, "store_widget_state": False, "timeout": 600}
    with TemporaryDirectory() as sockets:  # another program could take a network port
        local = {"transport": "ipc", "connection_file": f"{sockets}/k.json"} if CAN_FORK else {}
        NotebookClient(running, **options, config=Config(KernelManager=local)).execute()
    for cell, ran in zip(content.cells, running.cells, strict=True):
        if cell.cell_type == "code":
            shown = cell.outputs if CALL.search(cell.source.strip()) else []  # with its picture
            cell.outputs, cell.execution_count = shown or ran.outputs, ran.execution_count
    tidy(content)
    if (paper := notebook.parent / PAPER).is_dir():
        show_committed(content, paper)
        write_thumbnail(content, notebook)
    nbformat.write(content, notebook)
    run_jupytext(["--quiet", "--sync", str(notebook)])  # the script's header follows the metadata


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Remove progress bars, widget views and the metadata of one machine; shrink pictures."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_passing(output)]
            for data in (o.get("data", o) for o in cell.outputs):
                if "image/png" in data:
                    data["image/png"] = smaller(data["image/png"])
                data.update({k: readable(data[k]) for k in ("text", "text/html") if k in data})
    return notebook


def readable(text: str) -> str:
    """Return an output for readers; one that is readable stays as it is.

    Tables get the headings of ``templates/columns.yaml``, short numbers and a dash for no value;
    their ``text/plain`` keeps what pandas printed.  An empty list is "none".
    """
    if "<table" not in text:
        return re.sub(r"(?<=\s)\[\](?=[,.\n]|$)", "none", text)
    text = re.sub(r"<style.*?</style>\n?| border=\"1\"", "", text, flags=re.S)
    text = CELL.sub(lambda cell: cell[1] + HEADINGS.get(cell[2], cell[2]) + cell[3], text)
    return LONG.sub(lambda number: f">{_short(float(number[1]))}<", text)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) > 999 else f"{value:.4g}"


def find_renderer() -> str:
    """Return plotly's renderer: with still pictures if kaleido and a browser can make them."""
    import plotly.graph_objects as go

    try:
        go.Figure().to_image("png")
    except Exception as error:  # kaleido, its browser, or what either needs is missing
        reason = str(error).strip().splitlines()[0]
        print(f"figures are saved without still pictures: {reason}", file=sys.stderr)
        return "plotly_mimetype"
    return "plotly_mimetype+png"


def main(arguments: Sequence[str]) -> int:
    """Refresh the named notebooks, or only their verdicts, and return the exit code."""
    notebooks = [Path(argument) for argument in arguments if argument != "--verdicts"]
    missing = [str(n) for n in notebooks if n.suffix != ".ipynb" or not n.is_file()]
    if missing or not notebooks:
        print(f"{', '.join(missing) or 'nothing'}: expected .ipynb files", file=sys.stderr)
        return 2
    if "--verdicts" in arguments:
        for notebook in notebooks:
            content = nbformat.read(notebook, as_version=4)
            nbformat.write(show_committed(content, notebook.parent / PAPER), notebook)
            write_thumbnail(content, notebook)
        return 0
    renderer = find_renderer()
    for notebook in notebooks:
        refresh(notebook, renderer)
        print(f"{notebook}: {notebook.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
