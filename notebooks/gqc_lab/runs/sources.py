"""Which modules of gqc a notebook can reach, by reading and not by running it.

A package's ``__init__`` that only re-exports is looked through: who uses ``gqc_lab.loop.track``
depends on the module that defines it, not on everything that stands beside it, so that a new
wrapper does not make every stored run stale.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import gqc
import gqc_lab
from gqc_lab.runs.fingerprint import digest, strip_prose

PACKAGES = {each.__name__: Path(each.__path__[0]) for each in (gqc, gqc_lab)}
# How notebooks are run, listed and drawn does not change their numbers.
_NOT_COUNTED = re.compile(r"gqc_lab\.(runs|figures|claims|publish|cli)(\.|$)")


def source_hashes(code: Iterable[str], folder: Path) -> dict[str, str]:
    """Hash of each module of gqc, or beside the notebook, that ``code`` can reach, by name.

    Args:
        code: sources of the notebook's cells.
        folder: the notebook's.
    """
    found: dict[str, str] = {}
    lines = (line for source in code for line in source.splitlines())
    source = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)
    try:
        waiting = list(mentioned(ast.parse(source), ""))
    except SyntaxError:  # some other magic: every dotted name of gqc counts
        waiting = ["gqc.*", "gqc_lab.*", *re.findall(r"\bgqc(?:_lab)?(?:\.\w+)*", source)]
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        module, rest = _split(name, folder)
        if not module or _NOT_COUNTED.match(module):
            continue
        path = _path(module, folder)
        exports = _exports(path, module) if path.name == "__init__.py" else None
        if exports is None:
            found[module] = _hash(path)
            waiting += _mentioned_by(path, module)
        elif rest[:1] == ["*"]:
            waiting += exports.values()
        elif rest and rest[0] in exports:
            waiting.append(".".join([exports[rest[0]], *rest[1:]]))
        if "." in module:  # a parent with code of its own runs too
            waiting.append(module.rpartition(".")[0])
    return dict(sorted(found.items()))


def differing(expected: Mapping[str, str], folder: Path) -> list[str]:
    """The modules whose hash here and now is not the one in ``expected``, or that are not here."""
    for cached in (_find, _hash):  # a process that lasts may have seen older files
        cached.cache_clear()
    paths = {name: _find(name, folder) for name in expected}
    return [n for n, path in paths.items() if path is None or _hash(path) != expected[n]]


def mentioned(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that ``tree`` uses: imported ones, with the attributes taken from them.

    ``import gqc`` and ``gqc.noise.x`` give "gqc.noise.x"; a module that is handed on as a value
    gives "module.*".  Where modules are imported by text, texts count as well.
    """
    bound: dict[str, str] = {}
    is_lazy = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                bound[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            for alias in node.names:
                yield f"{base}.{alias.name}"
                bound[alias.asname or alias.name] = f"{base}.{alias.name}"
        is_lazy |= isinstance(node, ast.Name) and node.id in {"import_module", "importlib"}
    inner = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            attributes: list[str] = []
            value: ast.expr = node
            while isinstance(value, ast.Attribute):
                inner.add(id(value))
                attributes.insert(0, value.attr)
                value = value.value
            if isinstance(value, ast.Name) and value.id in bound:
                inner.add(id(value))
                yield ".".join([bound[value.id], *attributes])
        elif isinstance(node, ast.Name) and node.id in bound and id(node) not in inner:
            yield f"{bound[node.id]}.*"
        elif is_lazy and isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            yield text if text.startswith(("gqc.", "gqc_lab.")) else f"{package}.{text.lstrip('.')}"


def _split(name: str, folder: Path) -> tuple[str, list[str]]:
    """The longest leading part that is a module of ours, and what is left; else ("", ...)."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if _find(module, folder) is not None:
            return module, parts[length:]
    return "", parts


@cache
def _find(module: str, folder: Path) -> Path | None:
    top, *rest = module.split(".")
    if not all(part.isidentifier() for part in module.split(".")):
        return None
    base = PACKAGES[top].joinpath(*rest) if top in PACKAGES else folder.joinpath(top, *rest)
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def _path(module: str, folder: Path) -> Path:
    path = _find(module, folder)
    if path is None:
        raise FileNotFoundError(module)
    return path


@cache
def _hash(path: Path) -> str:
    """Hash of a module, and of the tables next to it that it names, such as "tuned.csv"."""
    code = strip_prose(path.read_text(encoding="utf-8"))
    tables = (path.with_name(name) for name in re.findall(r'"([\w-]+\.csv)"', code))
    return digest(b"\0".join([code.encode(), *(t.read_bytes() for t in tables if t.is_file())]))


@cache
def _mentioned_by(path: Path, module: str) -> tuple[str, ...]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return tuple(mentioned(ast.parse(path.read_text(encoding="utf-8")), package))


@cache
def _exports(path: Path, module: str) -> dict[str, str] | None:
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
