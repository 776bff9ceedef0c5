"""The site opens from a folder, without a network."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from gqc_lab.publish import pages, site

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_site_links_to_pages_that_exist_and_loads_nothing_from_elsewhere(tmp_path):
    index = site.build(ROOT, tmp_path / "site")
    pages = list(index.parent.rglob("*.html"))
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks <= {path.stem for path in (index.parent / "notebooks").glob("*.html")}
    for path in (page for page in pages if "api" not in page.parts):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', text), path
        for target in re.findall(r'<(?:a|img|script)[^>]+(?:href|src)="([^"#:]+)"', text):
            linked = (path.parent / target).resolve()
            is_repository_file = (ROOT / target).exists()
            assert linked.exists() or is_repository_file, (path, target)
    assert (index.parent / "api" / "gqc" / "wrappers.html").is_file()


def test_a_figure_is_kept_interactive():
    figure = {"data": [{"type": "scatter", "y": [1, 2]}], "layout": {}}
    output = nbformat.v4.new_output("display_data", {pages.PLOTLY: figure, "image/png": "x"})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("f", outputs=[output])])
    body = pages.render_notebook(notebook)
    assert "Plotly.newPlot" in body
    assert '<script src="plotly.min.js">' in body
    assert "<img" not in body
