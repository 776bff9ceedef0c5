"""Which modules of ours a notebook uses: read from its code before a run, checked after it.

A package's ``__init__`` that only re-exports is looked through: who uses ``gqc.UPGD`` depends on
the module that defines it, not on everything that stands next to it, so that a new wrapper does
not make every stored run stale.
"""

import ast
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from gqc_lab.runs.fingerprint import digest, strip_prose
from gqc_lab.runs.store import file_hash

# Found without importing them: torch would come with them, and planning needs none of it.
PACKAGES = {
    name: Path(spec.submodule_search_locations[0])
    for name in ("gqc", "gqc_lab")
    if (spec := importlib.util.find_spec(name)) and spec.submodule_search_locations
}
# How notebooks are run, listed, drawn and judged does not change their numbers.
NOT_HASHED = ("gqc_lab.claims", "gqc_lab.cli", "gqc_lab.figures", "gqc_lab.publish", "gqc_lab.runs")
# As good as importing: indentation, folder and name.
_RUN = re.compile(r"^([ \t]*)%run[ \t]+(?:-\w[ \t]+)*((?:[\w.-]*/)*)(\w+)(?:\.py)?(?!\S).*", re.M)


def search_folders(code: Sequence[str], folder: Path) -> tuple[Path, ...]:
    """Return the notebook's folder and those of ``%run`` or put on ``sys.path`` by a literal."""
    places = [place for _, place, _ in _RUN.findall("\n".join(code)) if place]
    folders = [folder, *((folder / place).resolve() for place in places)]
    for node in ast.walk(_parse(code) or ast.Module([], [])):
        match node:
            case ast.Call(
                func=ast.Attribute(
                    value=ast.Attribute(value=ast.Name(id="sys"), attr="path"),
                    attr="append" | "insert" as how,
                ),
                args=[*_, place],
            ):
                texts = [n.value for n in ast.walk(place) if isinstance(n, ast.Constant)]
                if len(texts) == 1 and isinstance(texts[0], str):  # perhaps in str(Path(...))
                    place_in_path = 0 if how == "insert" else len(folders)
                    folders.insert(place_in_path, (folder / texts[0]).resolve())
    return tuple(folders)


def source_hashes(code: Sequence[str], folders: Sequence[Path]) -> dict[str, str]:
    """Return the hash of each module of ours that ``code`` can reach, by name.

    Ours are gqc, the lab, what stands next to the notebook, and what stands in the folders that the
    notebook adds to ``sys.path``.
    """
    tree = _parse(code)
    if tree is None:  # some unknown magic: all that gqc exports counts, and each of its names
        waiting = ["gqc.*", "gqc_lab.*", *re.findall(r"\bgqc(?:_lab)?(?:\.\w+)*", "\n".join(code))]
    else:
        waiting = list(_mentioned(tree, ""))
    found, seen = dict[str, str](), set[str]()
    find = cache(lambda module: _find(module, folders))  # most names begin alike
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        module, rest = _split(name, find)
        path = find(module)
        if path is None or any(f"{module}.".startswith(f"{each}.") for each in NOT_HASHED):
            continue
        exports = _exports(path, module, _stamp(path)) if path.name == "__init__.py" else None
        if exports is None:
            found[module] = module_hash(path)
            waiting += _mentioned_by(path, module, _stamp(path))
        elif rest[:1] == ["*"]:
            waiting += exports.values()
        elif rest and rest[0] in exports:
            waiting.append(".".join([exports[rest[0]], *rest[1:]]))
        waiting.append(module.rpartition(".")[0])  # a parent with code of its own runs too
    return dict(sorted(found.items()))


def differing(expected: Mapping[str, str], folders: Sequence[Path]) -> list[str]:
    """Return the modules that are not here, or whose hash here and now is not the expected one."""
    paths = {name: _find(name, folders) for name in expected}
    return [n for n, path in paths.items() if path is None or module_hash(path) != expected[n]]


def changed_inputs(job: Mapping[str, Any]) -> list[str]:
    """Return the modules and data files that are not as ``job`` was planned with."""
    changed = differing(job["inputs"]["source"], [Path(each) for each in job["folders"]])
    for entry, path in job["data"].items():
        expected = job["inputs"]["data"][entry]
        if not Path(path).is_file() or _file_hash(path, _stamp(Path(path))) != expected:
            changed.append(entry)
    return changed


def unplanned_modules(job: Mapping[str, Any], record: Path) -> list[str]:
    """Return the modules that a run loaded from files for which its id does not stand.

    Args:
        record: what `runs.save` found when the run saved its numbers, as JSON.
    """
    if not record.is_file():  # it saved none
        return []
    planned, data = job["inputs"]["source"], set(job["data"].values())
    unplanned = []
    for name, file in json.loads(record.read_bytes()).items():
        if name in planned:
            if module_hash(Path(file)) != planned[name]:
                unplanned.append(f"{name} ({file})")
        elif not (file in data or name.split(".")[0] in PACKAGES or _is_installed(name)):
            unplanned.append(f"{name} ({file})")
    return unplanned


@cache
def _is_installed(name: str) -> bool:
    """Whether the module is of a distribution, perhaps one that is installed in place."""
    return name.split(".")[0] in importlib.metadata.packages_distributions()


def _parse(code: Iterable[str]) -> ast.Module | None:
    """Parse cells without their lines of magic; None if some other magic is left."""
    lines = _RUN.sub(r"\1import \3", "\n".join(code)).split("\n")
    try:
        return ast.parse("\n".join("" if x.lstrip().startswith(("%", "!")) else x for x in lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _mentioned(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that ``tree`` uses: imported ones, with the attributes taken from them.

    ``import gqc`` and ``gqc.noise.x`` give "gqc.noise.x"; a module that is handed on as a value
    gives "module.*".  Where modules are imported by text, texts count as well.
    """
    nodes = list(ast.walk(tree))
    bound: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                top = alias.name.split(".")[0]
                bound[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            for alias in node.names:
                yield f"{base}.{alias.name}"
                bound[alias.asname or alias.name] = f"{base}.{alias.name}"
    is_lazy = any(isinstance(n, ast.Name) and n.id in {"import_module", "importlib"} for n in nodes)
    owners = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            name, _, rest = _dotted(node).partition(".")
            if name in bound:
                yield f"{bound[name]}.{rest}"
        elif isinstance(node, ast.Name) and node.id in bound and id(node) not in owners:
            yield f"{bound[node.id]}.*"
        elif is_lazy and isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            yield text if text.startswith(("gqc.", "gqc_lab.")) else f"{package}.{text.lstrip('.')}"


def _dotted(node: ast.expr) -> str:
    """Such as "a.b.c"; empty for what is no chain of attributes of a name."""
    if isinstance(node, ast.Name):
        return node.id
    base = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{base}.{node.attr}" if base and isinstance(node, ast.Attribute) else ""


def _split(name: str, find: Callable[[str], Path | None]) -> tuple[str, list[str]]:
    """The longest leading part that is a module of ours, and what is left; else ("", ...)."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if find(module) is not None:
            return module, parts[length:]
    return "", parts


def _find(module: str, folders: Sequence[Path]) -> Path | None:
    top, *rest = module.split(".")
    if not all(part.isidentifier() for part in (top, *rest)):
        return None
    roots = [PACKAGES[top]] if top in PACKAGES else [each / top for each in folders]
    for root in roots:
        base = root.joinpath(*rest)
        for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if path.is_file():
                return path
    return None


def _stamp(path: Path) -> tuple[int, int, int]:
    """Changes with the file, so that what was read of it is read again."""
    state = path.stat()
    return state.st_mtime_ns, state.st_size, state.st_ino


def module_hash(path: Path) -> str:
    """Return the hash of a module's code, and of the tables next to it that it names, such as
    "tuned.csv"."""
    code = _code(path, _stamp(path))
    tables = (path.with_name(name) for name in re.findall(r'"([\w-]+\.csv)"', code))
    return digest(b"\0".join([code.encode(), *(t.read_bytes() for t in tables if t.is_file())]))


@lru_cache(4096)
def _code(path: Path, stamp: tuple[int, int, int]) -> str:
    return strip_prose(path.read_text(encoding="utf-8"))


@lru_cache(64)
def _file_hash(path: str, stamp: tuple[int, int, int]) -> str:
    return file_hash(Path(path))


@lru_cache(4096)
def _mentioned_by(path: Path, module: str, stamp: tuple[int, int, int]) -> tuple[str, ...]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return tuple(_mentioned(ast.parse(path.read_text(encoding="utf-8")), package))


@lru_cache(4096)
def _exports(path: Path, module: str, stamp: tuple[int, int, int]) -> dict[str, str] | None:
    """What an ``__init__`` that only re-exports imports, by its name here; None if it does more."""
    exports: dict[str, str] = {}
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        match statement:
            case ast.ImportFrom(names=names):
                base = _absolute(statement, module)
                exports |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in names}
            case ast.Expr(value=ast.Constant()):
                pass
            case ast.Assign(targets=[ast.Name(id=name)]) if name.startswith("__"):
                pass
            case _:
                return None
    return exports


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    base = package.split(".")
    base = base[: len(base) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)
