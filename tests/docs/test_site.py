"""The site opens from a folder, without a network, and every link of it leads somewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import make_site as site
import nbformat
import pytest

from gqc_lab.publish.gallery import PLOTLY

ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src"}


class Page(HTMLParser):
    """What a page loads, where it leads to, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads, self.links, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if values.get(LOADED.get(tag)) and values.get("rel") not in ("canonical", "search"):
            self.loads.append(values[LOADED[tag]])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path):
    index = site.build(ROOT, tmp_path / "site")
    pages = {path: Page(path) for path in index.parent.rglob("*.html")}
    names = {path.relative_to(index.parent).as_posix() for path in pages}
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {f"notebooks/{name}.html" for name in notebooks} <= names
    assert {"claims.html", "search.html", "api/gqc.wrappers.html"} <= names
    broken = [
        (path.name, target)
        for path, page in pages.items()
        for target in (*page.loads, *page.links)
        if not re.match(r"https?://|mailto:|data:", target) and not leads(path, target, pages)
    ]
    assert broken == []
    for path, page in pages.items():
        assert [load for load in page.loads if re.match(r"(https?:)?//", load)] == [], path
    written = "".join(p.read_text("utf-8") for p in index.parent.rglob("_static/*.css"))
    assert not re.search(r"url\([\"']?(https?:)?//|@import [\"']?(https?:)?//", written)
    reference = (index.parent / "api" / "gqc.wrappers.html").read_text("utf-8")
    assert 'href="#gqc.wrappers.windowed' in reference
    assert "<math" in reference


def leads(path: Path, target: str, pages: dict[Path, Page]) -> bool:
    """Whether the relative link ``target`` of the page ``path`` leads to something there."""
    name, _, anchor = target.partition("#")
    place = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path
    if place not in pages:
        return place.is_file()
    return not anchor or unquote(anchor) in pages[place].anchors


def test_a_figure_is_kept_interactive(tmp_path):
    figure = {"data": [{"type": "scatter", "y": [1, 2]}], "layout": {}}
    output = nbformat.v4.new_output("display_data", {PLOTLY: figure, "image/png": "x"})
    cells = [nbformat.v4.new_code_cell("f", outputs=[output, output])]
    path = tmp_path / "x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    first, second = json.loads(site.interactive(path))["cells"][0]["outputs"]
    assert list(first["data"]) == ["text/html"]
    assert "Plotly.newPlot" in second["data"]["text/html"]
    script = '<script src="../_static/plotly.min.js">'
    assert [script in "".join(o["data"]["text/html"]) for o in (first, second)] == [True, False]


@pytest.mark.slow
def test_pages_are_collected_from_a_checkout_alone(tmp_path):
    """A run store beside it, the user's own, is not read."""
    site.collect(ROOT, tmp_path)
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "index.md").is_file()
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert all((tmp_path / picture).is_file() for picture in pictures)
    cards = re.findall(
        r'href="([^"]+)\.html"><img src="([^"]+)"', (tmp_path / "gallery.md").read_text()
    )
    assert len(cards) >= 20
    assert all((ROOT / f"{name}.ipynb").is_file() for name, _ in cards)
    assert all((ROOT / picture).is_file() for _, picture in cards)


def test_an_answer_is_shown_without_the_code_that_shows_it():
    cells = json.loads(site.interactive(ROOT / "notebooks/18_angle_paradox.ipynb"))["cells"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    assert not any("install" in each for each in tags)
    (answer,) = [each for each in tags if "evidence" in each]
    assert "remove-input" in answer
