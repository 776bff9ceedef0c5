"""The notebooks of the repository: not the lab beside them, and no runs of a user."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "notebooks"


def find(suffix):
    return [*sorted(FOLDER.glob(f"[0-9]*{suffix}")), *sorted(FOLDER.glob(f"guides/*{suffix}"))]


NOTEBOOKS = find(".ipynb")
SCRIPTS = find(".py")
