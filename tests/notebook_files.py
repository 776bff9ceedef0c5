"""The notebooks of the repository: not the lab beside them, and no runs of a user."""

from pathlib import Path

import jupytext

FOLDER = Path(__file__).parents[1] / "notebooks"


def find(suffix):
    return [*sorted(FOLDER.glob(f"[0-9]*{suffix}")), *sorted(FOLDER.glob(f"guides/*{suffix}"))]


NOTEBOOKS = find(".ipynb")
SCRIPTS = find(".py")


def is_paired(notebook):
    """Whether the .py next to ``notebook`` has the same cells (headers do not count)."""
    script = notebook.with_suffix(".py").read_text(encoding="utf-8")
    return cells_of(jupytext.writes(jupytext.read(notebook), "py:percent")) == cells_of(script)


def cells_of(script):
    return script[script.index("# %%") :]
