"""The house's rules, read from the sources: imports run downwards, and files stay small.

A room imports from those that stand after it in `ROOMS`.  Type annotations do not count; imports
inside functions do.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from notebook_files import SCRIPTS

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "gqc", ROOT / "notebooks/gqc_lab", ROOT / "widgets/gqc_widgets")
ROOMS = (
    "notebooks",
    "gqc_widgets",
    "gqc_lab.cli",
    "gqc_lab.publish",
    "gqc_lab.claims",
    "gqc_lab.runs",
    "gqc_lab.figures",
    "gqc_lab.studies",
    "gqc_lab.data",
    "gqc_lab.models",
    "gqc_lab",  # its names, taken from the loop when they are asked for
    "gqc_lab.loop",
    "gqc_lab.stats",
    "gqc_lab.errors",
    "gqc",
)
PARTS = ("gqc_lab.data", "gqc_lab.models")  # neither knows of the other

MOST_LINES_OF_A_MODULE = 350
MOST_LINES_OF_A_FUNCTION = 50
MOST_LINES_OF_THE_CORE = 10_477  # 9_000 when what the drop-ins and integrations replace is gone
MOST_LINES = 30_668  # of all packages; less when the views are trimmed to what the seam needs


#: what the core does not import by itself, each for one package
OF_TRAINERS = ("gqc.integrations.huggingface", "gqc.integrations.sb3")

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Import(NamedTuple):
    module: str
    name: str  # of what is taken from it, or empty


def _modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = _modules()
NOTEBOOKS = {path.stem: path for path in SCRIPTS}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[Import]:
    """What of the packages ``path`` imports, at whatever place, but for annotations."""
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (Import(a.name, "") for a in node.names if a.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield Import(inner, "") if inner in MODULES else Import(node.module, alias.name)


def room(module: str) -> str:
    """The longest of `ROOMS` that ``module`` is in."""
    inside = [r for r in ROOMS if f"{module}.".startswith(f"{r}.")]
    return max(inside, key=len) if inside else "notebooks"


def test_every_module_has_its_room():
    found = {room(module) for module in MODULES}
    assert found == set(ROOMS) - {"notebooks"}
    assert [m for m in MODULES if room(m) == "gqc_lab" and m != "gqc_lab"] == []


@pytest.mark.parametrize("module", [*MODULES, *NOTEBOOKS])
def test_imports_run_downwards(module):
    path = MODULES.get(module) or NOTEBOOKS[module]
    here = room(module)
    upwards = [
        imported.module
        for imported in imports(path)
        if ROOMS.index(room(imported.module)) < ROOMS.index(here)
        or {here, room(imported.module)} == set(PARTS)
    ]
    assert upwards == []


def test_no_file_imports_itself_by_a_detour():
    graph = {
        module: {i.module for i in imports(path)} - {module} for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]), pytrace=False)


def test_figures_take_tables_and_constants_from_studies_and_no_training():
    for module, path in MODULES.items():
        if room(module) == "gqc_lab.figures":
            taken = [i for i in imports(path) if room(i.module) == "gqc_lab.studies"]
            tables = [i for i in taken if i.module.endswith(".settings")]
            assert [i for i in taken if i not in tables and not i.name.isupper()] == [], module


def test_the_core_needs_torch_and_nothing_else():
    """At import; what a function imports, it asks for in words where it is missing."""
    known = {"torch", "gqc", *sys.stdlib_module_names}
    for module, path in MODULES.items():
        if room(module) == "gqc" and module not in OF_TRAINERS:
            nodes = tree(path).body
            names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
            names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
            assert {name.split(".")[0] for name in names} <= known, module


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def own_lines(function: ast.AST) -> int:
    """Lines of a function without those of functions in it, which are counted themselves."""
    inner = [n for n in ast.walk(function) if isinstance(n, FUNCTIONS) and n is not function]
    outermost = [n for n in inner if not any(n in ast.walk(m) for m in inner if m is not n)]
    return length(function) - sum(length(n) for n in outermost)


def length(function: ast.AST) -> int:
    return function.end_lineno - function.lineno + 1


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_short(module):
    path = MODULES[module]
    assert lines(path) <= MOST_LINES_OF_A_MODULE
    sizes = {n.name: own_lines(n) for n in ast.walk(tree(path)) if isinstance(n, FUNCTIONS)}
    assert {n: size for n, size in sizes.items() if size > MOST_LINES_OF_A_FUNCTION} == {}


def test_the_packages_are_small():
    sizes = {module: lines(path) for module, path in MODULES.items()}
    assert sum(size for module, size in sizes.items() if room(module) == "gqc") <= (
        MOST_LINES_OF_THE_CORE
    )
    assert sum(sizes.values()) <= MOST_LINES
