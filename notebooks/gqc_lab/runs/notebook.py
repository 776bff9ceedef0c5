"""A notebook as a batch sees it: a text that will not change under it, code, parameters.

The file is parsed as JSON, not with nbformat, so that planning stays quick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gqc_lab.errors import BadInput
from gqc_lab.runs.parameters import Parameter, parse_cell
from gqc_lab.runs.sources import search_folders


@dataclass(frozen=True)
class Notebook:
    """A snapshot of an .ipynb file.

    Args:
        path: where it was read.
        text: its content at that moment; this is what runs, even if the file changes meanwhile.
        code: the sources of the code cells, without those tagged `parameters` or `install`: where
            the kit comes from does not change a run, and its source is hashed by itself.
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

    Raises: BadInput: no such notebook, not JSON, no single `parameters` cell, or a pair of
        which only one half was edited.
    """
    path = Path(path)
    if path.suffix == ".py":
        path = path.with_suffix(".ipynb")
        if not path.is_file():
            raise BadInput(f"{path}: no such notebook; make it with `jupytext --sync` on the .py")
    if path.suffix != ".ipynb" or not path.is_file():
        raise BadInput(f"{path}: expected an existing .ipynb notebook")
    text = path.read_text(encoding="utf-8")
    cells = _code_cells(path, text)
    tagged = [source for source, tags in cells if "parameters" in tags]
    if len(tagged) != 1:
        raise BadInput(
            f"{path}: {len(tagged)} cells are tagged `parameters`; expected one, with a line "
            "`name = literal` for each parameter"
        )
    code = tuple(source for source, tags in cells if not {"parameters", "install"} & set(tags))
    _check_pair(path, [source for source, _ in cells])
    declared = parse_cell(tagged[0], f"{path}: parameters cell", path.parent)
    if "run" in declared:
        raise BadInput(f"{path}: parameter 'run': the store calls a run's id so; choose another")
    return Notebook(path.resolve(), text, code, declared)


def _code_cells(path: Path, text: str) -> list[tuple[str, list[str]]]:
    try:
        content: Any = json.loads(text)
        cells = content["cells"]
        return [
            ("".join(cell["source"]), cell.get("metadata", {}).get("tags", []))
            for cell in cells
            if cell["cell_type"] == "code"
        ]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: not a Jupyter notebook (nbformat 4)") from None


def _check_pair(path: Path, sources: list[str]) -> None:
    script = path.with_suffix(".py")
    if not script.is_file():
        return
    text = script.read_text(encoding="utf-8")
    if "format_name: percent" not in text:  # a script that merely has the same name
        return
    import jupytext

    cells = jupytext.reads(text, fmt="py:percent").cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    if [_stripped(each) for each in code] != [_stripped(each) for each in sources]:
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
