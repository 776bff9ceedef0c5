"""The documentation as a folder of HTML pages that opens without a network: ``make site``.

README, notebooks with the outputs they were saved with, the runs of the store ``runs`` if there are
any, the API reference (pdoc), and where gqc differs from torch-gqc.
"""

from __future__ import annotations

import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbconvert.filters import markdown2html

import gqc
from gqc_lab.publish.gallery import build_gallery
from gqc_lab.publish.pages import page, render_notebook, write_script
from gqc_lab.runs.store import Store

_LINKS = (
    ("index.html", "gqc"),
    ("notebooks.html", "Notebooks"),
    ("api/gqc.html", "API"),
    ("differences.html", "Differences from torch-gqc"),
    ("changelog.html", "Changes"),
)


def build(root: Path, target: Path) -> Path:
    """Write the site of the checkout ``root`` into ``target``; returns its first page.

    Raises:
        FileNotFoundError: ``root`` has no README.md.
        RuntimeError: pdoc failed; its message is in it.
    """
    readme = (root / "README.md").read_text(encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    write_script(target)
    listed = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        title = re.search(r"^# (.+)$", notebook.cells[0].source, re.M)
        listed.append(f"- [{title[1] if title else path.stem}](notebooks/{path.stem}.html)")
        destination = target / "notebooks" / f"{path.stem}.html"
        destination.parent.mkdir(exist_ok=True)
        text = render_notebook(notebook, "../plotly.min.js")
        text = re.sub(r'href="((?:\./)?[\w-]+)\.ipynb"', r'href="\1.html"', text)
        destination.write_text(text, encoding="utf-8")
    pages = {
        "index": ("gqc", re.sub(r"\((notebooks/[\w-]+)\.ipynb\)", r"(\1.html)", readme)),
        "notebooks": ("Notebooks", "# Notebooks\n\n" + "\n".join(listed)),
        "changelog": ("Changes", (root / "CHANGELOG.md").read_text(encoding="utf-8")),
        "differences": ("Differences", _differences(root)),
    }
    store, links = Store(root / "runs"), list(_LINKS)
    if store.finished():
        build_gallery(store, target / "runs", links=[("../index.html", "gqc")])
        links.append(("runs/index.html", "Runs"))
    for name, (heading, text) in pages.items():
        content = page(heading, markdown2html(text), links)
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
    """``python -m gqc_lab.publish.site ROOT TARGET``."""
    root, target = map(Path, arguments)
    print(f"open {build(root, target)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
