"""Executed notebooks of a run store as a folder of HTML pages that opens without a network.

One page per finished run, and an index: parameters, result numbers and the first figure of each
run, and for a batch the table and the figure that its file asks for.
"""

import base64
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from jinja2 import Environment
from markupsafe import Markup
from nbconvert import HTMLExporter

from gqc_lab.errors import BadInput
from gqc_lab.runs import report
from gqc_lab.runs.index import describe_damage, summarize
from gqc_lab.runs.plan import Batch
from gqc_lab.runs.results import load
from gqc_lab.runs.store import NOTEBOOK, Store

if TYPE_CHECKING:
    import pandas as pd

PLOTLY = "application/vnd.plotly.v1+json"
SCRIPT = "plotly.min.js"  #: plotly itself: one file, shared by the pages of a folder


def build_gallery(store: Store, target: Path, batch: Batch | None = None) -> Path:
    """Write the pages of finished runs into ``target``, and return the index.

    A page that is there already is kept, unless its run was made again.  Damaged runs are left out,
    and named in the index.

    Args:
        batch: show its runs only, in its order; None: all of the store.
    Raises: BadInput: there is no finished run.
    """
    if not store.root.is_dir():
        raise BadInput(f"{store.root}: no such run store; make one with `gqc batch run`")
    asked = {run.id for run in batch.runs} if batch else store.finished()
    stored = summarize(store, store.finished() & asked, is_whole=True)
    damaged = {k: describe_damage(e) for k, e in stored.items() if isinstance(e, Exception)}
    if len(damaged) == len(stored):
        raise BadInput(f"{store.root}: no finished run to show; `gqc batch run` makes some")
    runs = load(store.root, ids=stored.keys() - damaged)
    found = runs.results if batch is None else report.batch_results(batch, runs)
    write_script(target)
    thumbnails = {run: _write_run(store, run, target) for run in found["run"].unique()}
    sections = []
    for notebook, rows in found.groupby("notebook", sort=False):
        rows = rows.dropna(axis="columns", how="all")
        if not batch:  # by parameters and then results: ids mean nothing
            by = [column for column in rows.columns if column != "run"]
            rows = rows.sort_values(by, key=lambda c: c.map(str) if c.dtype == object else c)
        sections.append(_section(str(notebook), rows, thumbnails))
    figure = None
    if batch and batch.report.figure:
        drawn = report.draw_figure(batch, found, runs.history)
        figure = Markup(drawn.to_html(include_plotlyjs=False, full_html=False))
    text = files("gqc_lab.publish").joinpath("templates", "gallery.html").read_text("utf-8")
    page = Environment(autoescape=True, trim_blocks=True).from_string(text)
    values = {"sections": sections, "figure": figure or "", "script": SCRIPT, "damaged": damaged}
    summary = _summary(batch, found) if batch else None
    index = target / "index.html"
    title = batch.name if batch else "Finished runs"
    index.write_text(page.render(title=title, summary=summary, **values), encoding="utf-8")
    return index


def _write_run(store: Store, run: str, target: Path) -> Markup:
    """Write a run's page and thumbnail, and return the element that shows the thumbnail."""
    source = store.folder(run) / NOTEBOOK
    notebook = nbformat.read(source, as_version=4)
    outputs = [o.get("data", {}) for cell in notebook.cells for o in cell.get("outputs", [])]
    element = _write_thumbnail(outputs, run, target)
    path = target / f"{run}.html"
    if not path.is_file() or path.stat().st_mtime_ns < source.stat().st_mtime_ns:
        figures_as_html(notebook, SCRIPT)
        exporter = HTMLExporter(require_js_url="", mathjax_url="")
        body, _ = exporter.from_notebook_node(nbformat.from_dict(notebook))
        path.write_text(body, encoding="utf-8")
    return element


def _write_thumbnail(outputs: list[dict[str, Any]], run: str, target: Path) -> Markup:
    """Write the first figure as a script that draws it, or as a picture."""
    for data in outputs:
        if PLOTLY in data:
            figure = json.dumps({key: data[PLOTLY].get(key, {}) for key in ("data", "layout")})
            (target / f"{run}.js").write_text(f'thumbnail("{run}", {figure});\n', encoding="utf-8")
            name = f'id="thumbnail-{run}" data-figure="{run}.js"'
            return Markup(f'<a href="{run}.html"><div class="thumbnail" {name}></div></a>')
        if "image/png" in data:
            (target / f"{run}.png").write_bytes(base64.b64decode(data["image/png"]))
            picture = f'<img class="thumbnail" loading="lazy" alt="" src="{run}.png">'
            return Markup(f'<a href="{run}.html">{picture}</a>')
    return Markup("")


def _summary(batch: Batch, results: "pd.DataFrame") -> dict[str, Any] | None:
    """Return the table that `gqc batch run` prints."""
    summary = report.summarize_batch(batch, results)
    if summary.empty:
        return None
    by, columns, groups = report.tabulate(summary)
    rows = [[*key, n, *cells] for key, n, cells in groups]
    text = report.describe_summary(batch, summary).capitalize()
    return {"text": text, "heads": [*by, "runs", *columns], "rows": rows}


def _section(notebook: str, rows: "pd.DataFrame", thumbnails: dict[str, Markup]) -> dict[str, Any]:
    """Return a table of runs; constant columns are stated once, above it."""
    texts = rows.drop(columns="notebook").map(report.show_cell)
    varied = [c for c in texts.columns if c != "run" and (len(rows) == 1 or texts[c].nunique() > 1)]
    fixed = [c for c in texts.columns if c not in varied and c != "run"]
    lines = []
    for run, group in texts.groupby("run", sort=False):
        for at, row in enumerate(group[varied].itertuples(index=False)):
            link = Markup(f'<a href="{run}.html">{str(run)[:8]}</a>')
            lines.append([*((thumbnails[str(run)], link) if at == 0 else ("", "")), *row])
    said = ", ".join(f"{name} = {texts[name].iloc[0]}" for name in fixed)
    return {"notebook": notebook, "fixed": said, "heads": ["", "run", *varied], "rows": lines}


def figures_as_html(notebook: dict[str, Any], script: str) -> None:
    """Replace the plotly figures in the outputs of ``notebook`` by HTML.

    Args:
        script: where the page finds plotly; the first figure loads it.
    """
    import plotly.io as pio

    head = f'<script src="{script}"></script>'
    for output in (o for cell in notebook["cells"] for o in cell.get("outputs", [])):
        if (figure := output.get("data", {}).get(PLOTLY)) is not None:
            shown = pio.from_json(json.dumps(figure))
            fits = {"responsive": True}  # its width follows the page
            body = pio.to_html(shown, include_plotlyjs=False, full_html=False, config=fits)
            output["data"], head = {"text/html": head + body}, ""


def write_script(folder: Path) -> None:
    """Put plotly's script into ``folder``."""
    from plotly.offline import get_plotlyjs

    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCRIPT).write_text(get_plotlyjs(), encoding="utf-8")
