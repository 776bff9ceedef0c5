"""A notebook as a batch sees it: a text that will not change under it, code, parameters.

The file is parsed as JSON, not with nbformat, so that planning stays quick.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gqc_lab.errors import BadInput
from gqc_lab.runs.parameters import UNREADABLE, Parameter, parse_cell, plain, read_text
from gqc_lab.runs.sources import search_folders

_CELL = re.compile(r"^# %%(.*)\n", re.M)  # the head of a cell in a script
_IS_NO_CODE = re.compile(r'\[\w+\]|tags=.*"parameters"')
NOT_CODE = {"parameters", "install", "evidence"}  #: tags of cells that a run's id does not cover


@dataclass(frozen=True)
class Notebook:
    """A snapshot of an .ipynb file.

    Args:
        path: where it was read.
        text: its content at that moment, without outputs; this is what runs, even if the file
            changes meanwhile.
        code: the sources of the code cells, without those tagged `parameters`, `install` or
            `evidence`: where the kit comes from and what is shown of committed results do not
            change a run, and the kit's source is hashed by itself.
        declared: the parameters, by name.
    """

    path: Path
    text: str
    code: tuple[str, ...]
    declared: dict[str, Parameter]

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """The notebook's folder, and those that it adds to ``sys.path``."""
        return search_folders(self.code, self.path.parent)

    @property
    def name(self) -> str:
        return self.path.stem


def read_notebook(path: Path | str) -> Notebook:
    """Read an .ipynb, or the .ipynb that a .py is paired with.

    The parameters of a pair may differ, as after a run that was steered: a run has those of the
    .ipynb, and records them.

    Raises: BadInput: no such notebook, damaged, no single `parameters` cell, or a pair of
        which only one half was edited.
    """
    path = Path(path)
    if path.suffix == ".py":
        path = path.with_suffix(".ipynb")
        if not path.is_file():
            raise BadInput(f"{path}: no such notebook; make it with `jupytext --sync` on the .py")
    if path.suffix != ".ipynb" or not path.is_file():
        raise BadInput(f"{path}: expected an existing .ipynb notebook")
    content = _read_content(path)
    of_code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    cells = [(cell["source"], {*cell["metadata"].get("tags", [])}) for cell in of_code]
    tagged = [source for source, tags in cells if "parameters" in tags]
    if len(tagged) != 1:
        raise BadInput(
            f"{path}: {len(tagged)} cells are tagged `parameters`; expected one, with a line "
            "`name = literal` for each parameter"
        )
    _check_pair(path, [source for source, tags in cells if "parameters" not in tags])
    declared = parse_cell(tagged[0], f"{path}: parameters cell", path.parent)
    if "run" in declared:
        raise BadInput(f"{path}: parameter 'run': the store calls a run's id so; choose another")
    code = (source for source, tags in cells if not NOT_CODE & tags)
    return Notebook(path.resolve(), json.dumps(content), tuple(code), declared)


def _read_content(path: Path) -> dict[str, Any]:
    """Return the notebook without outputs and what papermill noted, which do not count.

    Raises: BadInput: it is no notebook.
    """
    try:
        content: Any = json.loads(read_text(path))
        if content["nbformat"] != 4:
            raise ValueError(f"nbformat {content['nbformat']}")
        for name in ("papermill", "widgets"):  # widget state can weigh megabytes
            content["metadata"].pop(name, None)
        cells = enumerate(content["cells"])
        content |= {"nbformat_minor": 5, "cells": [_clean(cell, f"{at}") for at, cell in cells]}
        return plain("notebook", content)
    except (*UNREADABLE, AttributeError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BadInput(f"{path}: not a Jupyter notebook (nbformat 4): {why}") from None


def _clean(cell: dict[str, Any], name: str) -> dict[str, Any]:
    """Raises: TypeError or the like: it is no cell."""
    kind, metadata = cell["cell_type"], {**cell["metadata"]}
    metadata.pop("papermill", None)
    tags = metadata.get("tags", [])
    if not isinstance(tags, list) or kind not in {"code", "markdown", "raw"}:
        raise TypeError(f"a cell of type {kind!r} with tags {tags!r}")
    kept: dict[str, Any] = {}
    if kind == "code":
        kept |= {"outputs": [], "execution_count": None}
    elif "attachments" in cell:
        kept["attachments"] = {name: dict(each) for name, each in cell["attachments"].items()}
    source = "".join(cell["source"])
    return {"cell_type": kind, "id": name, "metadata": metadata, "source": source, **kept}


def _check_pair(path: Path, sources: list[str]) -> None:
    script = path.with_suffix(".py")
    if not script.is_file():
        return
    text = read_text(script)
    if "format_name: percent" not in text:  # a script that merely has the same name
        return
    wanted = [_stripped(each) for each in sources]
    _, *parts = _CELL.split(text)  # heads of cells and their texts in turn
    cells = zip(parts[::2], parts[1::2], strict=True)
    if [_stripped(each) for head, each in cells if not _IS_NO_CODE.search(head)] == wanted:
        return
    import jupytext  # takes a second, which plans need not wait for

    try:
        pair = jupytext.reads(text, fmt="py:percent")
    except Exception as error:  # its readers raise whatever they trip over
        why = " ".join(str(error).split())
        raise BadInput(f"{script}: jupytext cannot read it: {why}") from None
    code = [cell for cell in pair.cells if cell.cell_type == "code"]
    fixed = [cell for cell in code if "parameters" not in cell.metadata.get("tags", [])]
    if [_stripped(cell.source) for cell in fixed] != wanted:
        raise BadInput(
            f"{path} and {script.name} differ; run `jupytext --sync {path}` and try again"
        )


def _stripped(source: str) -> str:
    """Leave out what differs within a pair: line endings, and blanks around the cell."""
    return "\n".join(source.splitlines()).strip()


def is_passing(output: Mapping[str, Any]) -> bool:
    """Whether the output is a progress bar, as text or as a widget."""
    if output["output_type"] == "stream":
        text = "".join(output["text"])  # a list of lines in a file, one string in memory
        return output["name"] == "stderr" and ("\r" in text or not text.strip())
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})
