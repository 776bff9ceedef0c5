"""The documentation as a folder of HTML pages that opens without a network: ``make site``.

README, notebooks with the outputs they were saved with, the API reference (pdoc), and where gqc
differs from torch-gqc.  Figures stay interactive: plotly's script is one file of the site.
"""

from __future__ import annotations

import html
import json
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import plotly.io as pio
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from plotly.offline import get_plotlyjs

import gqc

PLOTLY = "application/vnd.plotly.v1+json"
STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
pre { background: #8881; padding: .8rem; overflow-x: auto } code { font-size: .92em }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #8886; padding: .3rem .6rem; text-align: left }
td { vertical-align: top }
nav a { margin-right: 1.2rem } img { max-width: 100% }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #ddd } a { color: #8bf } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML page with the site's navigation."""
    links = (
        ("index.html", "gqc"),
        ("notebooks.html", "Notebooks"),
        ("api/gqc.html", "API"),
        ("differences.html", "Differences from torch-gqc"),
        ("changelog.html", "Changes"),
    )
    bar = "".join(f'<a href="{target}">{name}</a>' for target, name in links)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f'</title><meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body><nav>{bar}</nav>{body}</body></html>"
    )


def render_notebook(notebook: NotebookNode, script: str = "plotly.min.js") -> str:
    """``notebook`` with its saved outputs as one page; figures load ``script`` from beside it."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).get(PLOTLY)
            if figure is not None:
                shown = pio.from_json(json.dumps(figure))
                output.data = nbformat.from_dict(
                    {"text/html": pio.to_html(shown, include_plotlyjs=False, full_html=False)}
                )
    exporter = HTMLExporter(require_js_url="", mathjax_url="")
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r'<script[^>]+src="(?:https?:)?//[^"]*"[^>]*>\s*</script>', "", body)
    return body.replace("<head>", f'<head><script src="{script}"></script>', 1)


def build(root: Path, target: Path) -> Path:
    """Write the site of the checkout ``root`` into ``target``; returns its first page.

    Raises:
        FileNotFoundError: ``root`` has no README.md.
        RuntimeError: pdoc failed; its message is in it.
    """
    readme = (root / "README.md").read_text(encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    listed = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        title = re.search(r"^# (.+)$", notebook.cells[0].source, re.M)
        listed.append(f"- [{title[1] if title else path.stem}](notebooks/{path.stem}.html)")
        destination = target / "notebooks" / f"{path.stem}.html"
        destination.parent.mkdir(exist_ok=True)
        destination.write_text(render_notebook(notebook, "../plotly.min.js"), encoding="utf-8")
    pages = {
        "index": ("gqc", re.sub(r"\((notebooks/[\w-]+)\.ipynb\)", r"(\1.html)", readme)),
        "notebooks": ("Notebooks", "# Notebooks\n\n" + "\n".join(listed)),
        "changelog": ("Changes", (root / "CHANGELOG.md").read_text(encoding="utf-8")),
        "differences": ("Differences", _differences(root)),
    }
    for name, (heading, text) in pages.items():
        content = page(heading, markdown2html(text))
        (target / f"{name}.html").write_text(content, encoding="utf-8")
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme):
        (target / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / picture, target / picture)
    _write_reference(target / "api")
    return target / "index.html"


def _differences(root: Path) -> str:
    table = root / "tests" / "peer" / "DIFFERENCES.md"
    return "# Differences from torch-gqc\n\n" + table.read_text(encoding="utf-8")


def _write_reference(target: Path) -> None:
    command = [sys.executable, "-m", "pdoc", "--math", "--docformat", "google", "-o", str(target)]
    modules = [module.name for module in pkgutil.walk_packages(gqc.__path__, "gqc.")]
    done = subprocess.run([*command, "gqc", *modules], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pdoc failed: {done.stderr.strip() or done.stdout.strip()}")


def main(arguments: Sequence[str]) -> int:
    """``python -m gqc.lab.site ROOT TARGET``."""
    root, target = map(Path, arguments)
    print(f"open {build(root, target)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
