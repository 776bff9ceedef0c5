"""The documentation as a folder of HTML pages that opens without a network: ``make site``.

Sphinx makes it (``conf.py`` next to this) of README, the pages in ``docs``, notebooks with the
outputs they were saved with, a gallery of them, the claims and verdicts, and the docstrings.  This
collects their sources under ``build/pages``; nothing is read from a run store, and nothing is
executed.
"""

from __future__ import annotations

import itertools
import json
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gqc
import gqc_lab
from gqc_lab.claims.commands import decide
from gqc_lab.claims.render import describe_claims, render
from gqc_lab.publish.gallery import SCRIPT, figures_as_html
from gqc_lab.publish.shown import THUMBNAILS

#: pages for readers in the order of the contents, then others; and the heading of one that has none
DOCS = ("guides", "wrappers", "steering", "torch_gqc", "lab")
PAGES = {
    "CONTRIBUTING.md": "",
    "CHANGELOG.md": "",
    "tests/peer/DIFFERENCES.md": "# Differences from torch-gqc\n\n",
}
NOT_LISTED = ("gqc.lab",)  #: an old name that only says its new one
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)|<img[^>]* src=\"([^\":]+)\"")
CARD = """<a class="card" href="{name}.html"><img src="notebooks/thumbnails/{stem}.png" alt="">
<span>{title}</span></a>"""
CONTENTS = "\n\n```{toctree}\n:hidden:\n:caption: %s\n\n%s\n```\n"


def build(root: Path, target: Path) -> Path:
    """Write the site of the checkout ``root`` into ``target``, and return its first page.

    The sources of the pages are collected in the folder ``pages`` next to it.

    Raises:
        FileNotFoundError: ``root`` has no README.md.
        RuntimeError: Sphinx failed.
    """
    root, pages = root.resolve(), target.parent / "pages"
    for folder in (pages, target):
        shutil.rmtree(folder, ignore_errors=True)
    collect(root, pages)
    command = [sys.executable, "-m", "sphinx", "-q", "-j", "2", "-c", str(Path(__file__).parent)]
    if code := subprocess.run([*command, str(pages), str(target)]).returncode:
        raise RuntimeError(f"sphinx ended with code {code}; its messages are above")
    place = f"notebooks/{THUMBNAILS}"
    shutil.copytree(root / place, target / place)
    return target / "index.html"


def collect(root: Path, pages: Path) -> None:
    """Write the sources of all pages of the checkout ``root`` into ``pages``."""
    guides, notebooks = (
        sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob(pattern))
        for pattern in ("notebooks/guides/*.ipynb", "notebooks/*.ipynb")
    )
    for name in [*guides, *notebooks]:
        text = interactive(root / f"{name}.ipynb", depth=name.count("/"))
        _put(pages / f"{name}.ipynb", text)
    references = [_references(Path(p.__path__[0]), p.__name__) for p in (gqc, gqc_lab)]
    for name, text in (page for pair in references for page in pair.items()):
        _put(pages / "api" / f"{name}.rst", text)
    claims = describe_claims(decide(root / "paper"))
    tables = render("claims.md", claims=claims, links="notebooks")
    docs = [f"docs/{name}" for name in DOCS]
    texts = {"claims.md": f"# Claims and verdicts\n\n{tables}", "gallery.md": gallery(root)}
    texts |= {
        name: heading + (root / name).read_text(encoding="utf-8")
        for name, heading in {**{f"{name}.md": "" for name in docs}, **PAGES}.items()
        if (root / name).is_file()
    }
    listed = {
        "Use it": docs,
        "Guides by task": guides,
        "Questions and answers": ["gallery", "claims", *notebooks],
        "Project": [name.removesuffix(".md") for name in PAGES],
        "API reference": ["api/gqc", "api/gqc_lab"],
    }
    contents = "".join(CONTENTS % (caption, "\n".join(names)) for caption, names in listed.items())
    readme = (root / "README.md").read_text(encoding="utf-8")
    for name, text in {"index.md": readme + contents, **texts}.items():
        _put(pages / name, text.replace("README.md", "index.md"))
        for link in filter(None, itertools.chain(*LINK.findall(text))):
            linked = (root / name).parent.joinpath(link).resolve()
            place = pages / linked.relative_to(root)
            if linked.is_file() and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(linked, place)


def gallery(root: Path) -> str:
    """Return a page with a card for each numbered notebook: its first figure and its question."""
    cards = []
    for path in sorted((root / "notebooks" / THUMBNAILS).glob("*.png")):
        script = path.parents[1] / f"{path.stem}.py"
        title = re.search(r"^# # (.*)$", script.read_text(encoding="utf-8"), re.M)
        name = f"notebooks/{path.stem}"
        cards.append(CARD.format(name=name, stem=path.stem, title=title[1] if title else path.stem))
    return '# Gallery\n\n<div class="gallery">\n' + "\n".join(cards) + "\n</div>\n"


def interactive(notebook: Path, depth: int = 1) -> str:
    """Return ``notebook`` with plotly figures as HTML.

    The cell that installs the kit is left out, and so is the code of what shows committed results.

    Args:
        depth: folders between the page and the site's first page.
    """
    content: dict[str, Any] = json.loads(notebook.read_text(encoding="utf-8"))
    tags = [cell["metadata"].get("tags", []) for cell in content["cells"]]
    cells = zip(content["cells"], tags, strict=True)
    content["cells"] = [cell for cell, each in cells if "install" not in each]
    for each in tags:
        each += ["remove-input"] if "evidence" in each else []
    figures_as_html(content, f"{'../' * depth}_static/{SCRIPT}")
    return json.dumps(content)


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _references(folder: Path, package: str) -> dict[str, str]:
    """Return the pages of ``package`` in ``folder`` and of the packages in it.

    A page documents the modules of its package, without importing them here.
    """
    texts: dict[str, str] = {}
    below = []
    text = f"{package}\n{'=' * len(package)}\n\n.. automodule:: {package}\n"
    for module in pkgutil.iter_modules([str(folder)]):
        name = f"{package}.{module.name}"
        if module.ispkg:
            texts |= _references(folder / module.name, name)
            below.append(f"   {name}\n")
        elif name not in NOT_LISTED:
            text += f"\n{name}\n{'-' * len(name)}\n\n.. automodule:: {name}\n   :members:\n"
    if below:
        text += "\n.. toctree::\n   :maxdepth: 1\n\n" + "".join(below)
    return {package: text, **texts}


def main(arguments: Sequence[str]) -> int:
    """``python docs/make_site.py ROOT TARGET``."""
    root, target = map(Path, arguments)
    print(f"open {build(root, target)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
