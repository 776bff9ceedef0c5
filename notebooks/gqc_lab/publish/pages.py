"""HTML pages that open without a network: a frame for text, and executed notebooks.

Figures stay interactive: plotly's script is one file, shared by the pages of a folder.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
import plotly.io as pio
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from plotly.offline import get_plotlyjs

PLOTLY = "application/vnd.plotly.v1+json"
SCRIPT = "plotly.min.js"
STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
pre { background: #8881; padding: .8rem; overflow-x: auto } code { font-size: .92em }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #8886; padding: .3rem .6rem; text-align: left }
td { vertical-align: top }
nav a { margin-right: 1.2rem } img { max-width: 100% }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #ddd } a { color: #8bf } }
"""


def page(title: str, body: str, links: Sequence[tuple[str, str]], head: str = "") -> str:
    """A whole HTML page.

    Args:
        links: targets and names of the navigation.
        head: further elements of the head.
    """
    bar = "".join(f'<a href="{target}">{html.escape(name)}</a>' for target, name in links)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f'</title><meta name="viewport" content="width=device-width"><style>{STYLE}</style>{head}'
        f"</head><body><nav>{bar}</nav>{body}</body></html>"
    )


def render_notebook(notebook: NotebookNode, script: str = SCRIPT) -> str:
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


def write_script(folder: Path) -> None:
    """Put plotly's script into ``folder``."""
    (folder / SCRIPT).write_text(get_plotlyjs(), encoding="utf-8")
