"""What saved notebooks show of committed results, brought up to date without running anything.

Cells that call ``claims.show_...("name")`` get their outputs here: tables as Markdown, and figures
both interactive and as a still picture, which matplotlib draws alike on every machine.
"""

import base64
import io
import json
import re
from pathlib import Path
from textwrap import wrap
from typing import Any

import nbformat
from nbformat import NotebookNode

from gqc_lab import claims
from gqc_lab.claims.evidence import evidence, figure_of, read_answers

CALL = re.compile(r'claims\.(?P<show>show_\w+)\("(?P<name>\w+)"\)$')
PLOTLY = "application/vnd.plotly.v1+json"
MARKDOWN = "<IPython.core.display.Markdown object>"
THUMBNAILS = "thumbnails"  #: next to the notebooks
WIDTH = 200  #: of a thumbnail [pixel]
SIZE = (4.4, 2.8)  #: of a picture whose entry names none, without its title [inch]


def show_committed(notebook: NotebookNode, paper: Path) -> NotebookNode:
    """Update the outputs of cells that show something of the committed results."""
    for cell in notebook.cells:
        if cell.cell_type != "code" or not (call := CALL.search(cell.source.strip())):
            continue
        if call["show"] == "show_evidence":
            cell.outputs = _outputs(call["name"], paper, cell.get("outputs", []))
        else:
            shown = getattr(claims, call["show"])(call["name"], paper)
            for output in cell.outputs:
                output.data["text/markdown"] = shown.data
    return notebook


def _outputs(name: str, paper: Path, old: list[Any]) -> list[NotebookNode]:
    """Return the outputs of `show_evidence`; a picture whose figure is as before is kept."""
    pictures = {_dumped(o.data[PLOTLY]): o for o in old if PLOTLY in o.get("data", {})}
    outputs = []
    for shown in evidence(name, paper):
        if hasattr(shown, "data") and isinstance(shown.data, str):
            data = {"text/markdown": shown.data, "text/plain": MARKDOWN}
            outputs.append(nbformat.v4.new_output("display_data", data))
            continue
        plain = json.loads(shown.to_json())
        if (kept := pictures.get(_dumped(plain))) is None:
            width, height = (figure_of(read_answers(paper)[name], paper) or {}).get("size", SIZE)
            png = base64.b64encode(_picture(shown, width, height, paper)).decode()
            data = {PLOTLY: plain, "image/png": smaller(png)}
            kept = nbformat.v4.new_output("display_data", data)
        outputs.append(kept)
    return outputs


def _dumped(figure: Any) -> str:
    return json.dumps(figure, sort_keys=True)


def _picture(figure: Any, width: float, height: float, paper: Path) -> bytes:
    import matplotlib as mpl
    from matplotlib import pyplot

    from gqc_lab.publish.matplotlib_figure import draw
    from gqc_lab.publish.paper_figures import STYLE

    with mpl.rc_context(), mpl.rc_context(fname=paper / STYLE):
        mpl.use("agg")
        whole = (line.strip() for line in figure.layout.title.text.split("<br>"))
        lines = [part for line in whole for part in wrap(line, round(17 * width))]
        drawn = draw(figure, (width, height + 0.1 + 0.14 * len(lines)))
        drawn.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8)
        file = io.BytesIO()
        drawn.savefig(file, format="png", dpi=150)
        pyplot.close(drawn)
    return file.getvalue()


def smaller(png: str) -> str:
    """Return a picture with 64 colours, base64 as a notebook has it; one with a palette stays."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "P":
        return png
    small = io.BytesIO()
    image.convert("RGB").quantize(64).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def write_thumbnail(notebook: NotebookNode, path: Path) -> None:
    """Write the first picture in a notebook's outputs, smaller, to ``thumbnails/<name>.png``.

    Only where there is such a folder; and not of 00, the page with all of them.
    """
    from PIL import Image

    target = path.parent / THUMBNAILS / f"{path.stem}.png"
    outputs = (o for cell in notebook.cells for o in cell.get("outputs", []))
    pictures = (o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {}))
    encoded = next(pictures, None)
    if encoded is None or not target.parent.is_dir() or path.stem.startswith("00"):
        return
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    image.thumbnail((WIDTH, WIDTH))
    image.quantize(32).save(target, optimize=True)
