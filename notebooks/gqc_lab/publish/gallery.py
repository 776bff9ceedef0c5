"""Executed notebooks of a run store as a folder of HTML pages that opens without a network.

One page per finished run, and an index: parameters, result numbers and the first figure of each
run, and for a batch the table and the figure that its file asks for.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import plotly.io as pio
from nbformat import NotebookNode

from gqc_lab.errors import BadInput
from gqc_lab.publish.pages import PLOTLY, SCRIPT, page, render_notebook, write_script
from gqc_lab.runs.plan import Batch
from gqc_lab.runs.progress import show_value
from gqc_lab.runs.report import (
    batch_results,
    describe_summary,
    figure_function,
    show_interval,
    summarize_batch,
)
from gqc_lab.runs.results import Runs, load
from gqc_lab.runs.store import NOTEBOOK, CorruptRun, Store

if TYPE_CHECKING:
    import pandas as pd

_HEAD = f"""<script src="{SCRIPT}"></script><style>
body {{ max-width: 90rem }} td {{ font-variant-numeric: tabular-nums }}
.thumbnail {{ width: 240px; height: 150px; background: #fff; overflow: hidden }}
</style>"""
# Figures are drawn when they are scrolled to; each is a script, since pages opened from a folder
# may not fetch data.
_SCRIPT = """<script>
function thumbnail(run, figure) {
  const place = document.getElementById("thumbnail-" + run);
  const bare = {
    width: 240, height: 150, margin: {l: 34, r: 6, t: 6, b: 22}, title: {text: ""},
    showlegend: false, font: {size: 9}, annotations: [],
  };
  const layout = {...figure.layout, ...bare};
  for (const name of Object.keys(layout)) {
    if (/^[xy]axis/.test(name)) layout[name] = {...layout[name], title: {text: ""}};
  }
  Plotly.newPlot(place, figure.data, layout, {staticPlot: true});
}
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((each) => each.isIntersecting)) {
    seen.unobserve(entry.target);
    const script = document.createElement("script");
    script.src = entry.target.dataset.figure;
    document.body.append(script);
  }
}, {rootMargin: "300px"});
document.querySelectorAll("[data-figure]").forEach((place) => seen.observe(place));
</script>"""


def build_gallery(
    store: Store,
    target: Path,
    batch: Batch | None = None,
    links: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the pages of finished runs into ``target``; returns the index.

    A page that is there already is kept: a finished run does not change.

    Args:
        store: where the runs are.
        batch: show its runs only, in its order; None: all of the store.
        links: targets and names for the top of the index.
    Raises: BadInput: there is no finished run, or a corrupt one.
    """
    if not store.root.is_dir():
        raise BadInput(f"{store.root}: no such run store; make one with `gqc batch run`")
    asked = None if batch is None else [run.id for run in batch.runs]
    try:
        runs = load(store.root, ids=asked)
        found = runs.results if batch is None else batch_results(batch, runs)
        if found.empty:
            raise BadInput(f"{store.root}: no finished run to show; `gqc batch run` makes some")
        target.mkdir(parents=True, exist_ok=True)
        write_script(target)
        thumbnails = {run: _write_run(store, run, target) for run in found["run"].unique()}
    except CorruptRun as error:
        raise BadInput(f"a run is corrupt: {error}") from None
    title = batch.name if batch else "Finished runs"
    body = f"<h1>{html.escape(title)}</h1>" + (_summary(batch, found, runs) if batch else "")
    for notebook, rows in found.groupby("notebook", sort=False):
        rows = rows.dropna(axis="columns", how="all")
        body += _section(str(notebook), rows if batch else _sorted(rows), thumbnails)
    index = target / "index.html"
    index.write_text(page(title, body + _SCRIPT, links, _HEAD), encoding="utf-8")
    return index


def _write_run(store: Store, run: str, target: Path) -> str:
    """Write the run's page and thumbnail; returns the element that shows the latter."""
    store.verify(run)
    notebook = nbformat.read(store.folder(run) / NOTEBOOK, as_version=4)
    element = _write_thumbnail(notebook, run, target)
    path = target / f"{run}.html"
    if not path.is_file():
        path.write_text(render_notebook(notebook), encoding="utf-8")
    return element


def _write_thumbnail(notebook: NotebookNode, run: str, target: Path) -> str:
    """The first figure, as a script that draws it or as the picture that it is."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    for data in (output.get("data", {}) for output in outputs):
        if PLOTLY in data:
            figure = json.dumps({key: data[PLOTLY].get(key, {}) for key in ("data", "layout")})
            (target / f"{run}.js").write_text(f'thumbnail("{run}", {figure});\n', encoding="utf-8")
            name = f'id="thumbnail-{run}" data-figure="{run}.js"'
            return f'<a href="{run}.html"><div class="thumbnail" {name}></div></a>'
        if "image/png" in data:
            (target / f"{run}.png").write_bytes(base64.b64decode(data["image/png"]))
            picture = f'<img class="thumbnail" loading="lazy" alt="" src="{run}.png">'
            return f'<a href="{run}.html">{picture}</a>'
    return ""


def _summary(batch: Batch, results: pd.DataFrame, runs: Runs) -> str:
    """What `gqc batch run` prints and draws."""
    summary = summarize_batch(batch, results)
    text = ""
    if len(summary):
        by = list(summary.columns[: list(summary.columns).index("column")])
        columns = list(dict.fromkeys(summary["column"]))
        rows = []
        for key, group in summary.groupby(by, sort=False, dropna=False):
            shown = {row["column"]: show_interval(row) for _, row in group.iterrows()}
            counted = [*(html.escape(str(k)) for k in key), str(group["n"].max())]
            rows.append(counted + [shown.get(column, "") for column in columns])
        text += f"<p>{html.escape(describe_summary(batch, summary).capitalize())}.</p>"
        text += _table([*by, "runs", *columns], rows)
    if batch.report.figure:
        figure = figure_function(batch)(results, runs.history)
        text += str(pio.to_html(figure, include_plotlyjs=False, full_html=False))
    return text


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    """By parameters and then results, instead of by ids, which mean nothing."""
    by = [column for column in rows.columns if column != "run"]
    return rows.sort_values(by, key=lambda c: c.map(str) if c.dtype == object else c)


def _section(notebook: str, rows: pd.DataFrame, thumbnails: dict[str, str]) -> str:
    """A table of runs; columns that are the same everywhere are said once, above it."""
    texts = rows.drop(columns="notebook").map(_show)
    several = len(rows) > 1
    varied = [c for c in texts.columns if c != "run" and (not several or texts[c].nunique() > 1)]
    fixed = [c for c in texts.columns if c not in varied and c != "run"]
    text = f"<h2>{html.escape(notebook)}</h2>"
    if fixed:
        listed = ", ".join(f"{html.escape(c)} = {texts[c].iloc[0]}" for c in fixed)
        text += f"<p>All of them: {listed}.</p>"
    lines = []
    for run, group in texts.groupby("run", sort=False):
        for at, row in enumerate(group[varied].itertuples(index=False)):
            link = f'<a href="{run}.html">{str(run)[:8]}</a>' if at == 0 else ""
            lines.append([thumbnails[str(run)] if at == 0 else "", link, *row])
    return text + _table(["", "run", *varied], lines)


def _show(value: Any) -> str:
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.5g}"
    return html.escape(show_value(value))


def _table(heads: list[str], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    lines = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
