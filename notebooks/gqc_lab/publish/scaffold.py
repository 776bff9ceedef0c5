"""A new experiment that runs as it is: module, notebook pair, batch, a claim to decide.

In a checkout the files go where such files are: the module to ``notebooks/gqc_lab/studies``, the
notebook to ``notebooks`` with the next number.  Anywhere else they go side by side into one
folder; a notebook finds the module next to it.
"""

import importlib.util
import json
import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat

from gqc_lab.errors import BadInput
from gqc_lab.publish.notebooks import fill_template, install_cell, tidy


@dataclass(frozen=True)
class Scaffold:
    """Paths of the files that were written, and the claim to add to claims.yaml by hand."""

    notebook: Path
    batch: Path
    paths: tuple[Path, ...]
    claim: str


def write_experiment(name: str, question: str = "", folder: Path | str = ".") -> Scaffold:
    """Write the files of a new experiment ``name``.

    Args:
        name: lower case with underscores, such as ``batch_noise``.
        question: title of the notebook; made of the name if empty.
        folder: a checkout of the kit, or any folder (it is made).
    Raises: BadInput: no such name is possible, or a file is there already; nothing is written.
    """
    _check_name(name)
    title = " ".join(question.split()) or f"What about {name.replace('_', ' ')}?"
    root = Path(folder)
    experiments, notebooks = root / "notebooks/gqc_lab/studies", root / "notebooks"
    is_checkout = experiments.is_dir() and notebooks.is_dir()
    if not is_checkout:
        experiments = notebooks = root
    numbers = [int(p.name[:2]) for p in notebooks.glob("[0-9][0-9]_*.ipynb")]
    stem = f"{max(numbers, default=0) + 1:02}_{name}"
    notebook, module = notebooks / f"{stem}.ipynb", experiments / f"{name}.py"
    batch = notebooks / "batches" / f"{stem}.yaml"
    origin = f"from gqc_lab.studies import {name}" if is_checkout else f"import {name}"
    class_name = "".join(word.capitalize() for word in name.split("_"))
    module_name = f"gqc_lab.studies.{name}" if is_checkout else name
    words = {
        "name": name,
        "title": title,
        "docstring": title.replace("\\", "\\\\").replace('""', '\\"\\"'),
        "statement": json.dumps(title, ensure_ascii=False),
        "stem": stem,
        "class_name": class_name,
        "settings": f"{module_name}.{class_name}Config",
        "install": install_cell(),
        "import_line": origin,
        "notebook": f"../{stem}.ipynb",
        "batch": batch.as_posix(),
    }
    script = fill_template("notebook.py", words)
    texts = {module: fill_template("experiment.py", words)}
    texts[batch] = fill_template("batch.yaml", words)
    pair = tidy(jupytext.reads(script, "py:percent"))
    pair.metadata["jupytext"] = {"formats": "ipynb,py:percent"}
    texts[notebook] = nbformat.writes(pair) + "\n"
    texts[notebook.with_suffix(".py")] = jupytext.writes(pair, "py:percent")
    for path in (*texts, module.with_suffix("")):  # also a folder, which would hide the module
        if path.exists():
            raise BadInput(f"{path}: is there already; choose another name")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Scaffold(notebook, batch, tuple(texts), fill_template("claim.yaml", words))


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise BadInput(f"{name!r}: expected a name of lower case letters, digits and underscores")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise BadInput(f"{name!r}: a file of that name would hide the module; choose another name")
