"""Turn the saved plotly figures of a notebook into HTML, for pages that open offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PLOTLY = "application/vnd.plotly.v1+json"
SCRIPT = "plotly.min.js"  #: plotly itself: one file, shared by the pages of a folder


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
