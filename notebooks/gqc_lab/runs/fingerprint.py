"""What a run depends on, as hashes: notebook code, gqc source, data, parameters.

The run id is the hash of these, so a run is stale exactly when one of them changed.  Comments,
docstrings and blank lines do not count.  What surrounds the run (versions, machine, commit) is
recorded beside it, but is not part of the id: a new patch release of numpy does not stale a
paper's runs.
"""

import ast
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gqc_lab.errors import BadInput
from gqc_lab.runs.store import file_hash

ID_LENGTH = 16  # hexadecimal digits: 64 bits, so 10,000 runs collide with odds of 3e-12


def digest(value: Any) -> str:
    """Return the sha256 of the canonical JSON of ``value``, or of bytes as they are."""
    if not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(value).hexdigest()


def strip_prose(source: str) -> str:
    """Return Python source without comments, docstrings, blank lines and trailing blanks.

    Blanks and blank lines within a text that spans lines are part of it and stay.
    """
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    lines = source.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    in_text: set[int] = set()  # rows that end within one
    docstrings = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str()) as docstring), *_]:
                    docstrings.append(docstring)
                    _cut(lines, docstring)
        if isinstance(node, (ast.JoinedStr, ast.Constant)) and node not in docstrings:
            in_text.update(range(node.lineno - 1, (node.end_lineno or node.lineno) - 1))
    kept = [line if row in in_text else line.rstrip() for row, line in enumerate(lines)]
    return "\n".join(line for row, line in enumerate(kept) if line or row in in_text)


def _cut(lines: list[str], doc: ast.Constant) -> None:
    """Empty the rows of a docstring, but not what stands before and after it."""
    first, last = doc.lineno - 1, (doc.end_lineno or doc.lineno) - 1
    before = lines[first].encode()[: doc.col_offset].decode()
    after = lines[last].encode()[doc.end_col_offset :].decode()
    lines[first : last + 1] = [""] * (last - first) + [before + after]


def cell_hash(source: str) -> str:
    """Return the hash of a notebook cell; one with magics is not Python and counts as it is."""
    try:
        return digest(strip_prose(source).encode())
    except (SyntaxError, tokenize.TokenError, ValueError, RecursionError, MemoryError):
        return digest(source.strip().encode())


def data_hashes(entries: Iterable[str], folder: Path) -> dict[str, str]:
    """Return the hash of each file, or the version of each installed distribution with data.

    Raises: BadInput: an entry is neither.
    """
    hashes = {}
    for entry in entries:
        path = folder / entry
        try:
            hashes[entry] = file_hash(path) if path.is_file() else importlib.metadata.version(entry)
        except importlib.metadata.PackageNotFoundError:
            raise BadInput(
                f"data: {entry!r}: expected a file (from {folder}) or an installed distribution"
            ) from None
    return hashes


def environment(folder: Path, threads: int | None) -> dict[str, Any]:
    """Return versions, machine, threads and commit, for the record.

    ``commit`` is that of the repository that holds ``folder``, with ``-dirty`` if tracked files
    are changed, or None outside git.
    """
    describe = ("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    versions: dict[str, str | None] = {}
    for requirement in importlib.metadata.requires("gqc-kit") or []:
        name = re.split(r"[^\w.-]", requirement)[0]
        if name != "gqc-kit" and "extra == 'dev'" not in requirement.replace('"', "'"):
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = None
    return {
        "gqc": importlib.metadata.version("gqc-kit"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "commit": git(folder, *describe).decode().strip() or None,
        "packages": versions,
    }


def registration(folder: Path) -> dict[str, Any] | None:
    """Return the rules that are registered while a run begins, and the commit that has them.

    Those of ``paper/registration.json`` in the project that holds ``folder``; None without one.
    ``commit`` is None where the file is not as it was committed.
    """
    for parent in folder.resolve().parents:
        path = parent / "paper" / "registration.json"
        if path.is_file():
            content = path.read_bytes()
            commit = git(parent, "rev-parse", "HEAD").decode().strip()
            is_committed = git(parent, "show", "HEAD:./paper/registration.json") == content
            rules = parse_registration(content, path)["rules"]
            return {"commit": commit if is_committed else None, "rules": rules}
    return None


def parse_registration(content: bytes, where: Path | str) -> dict[str, Any]:
    """Return what a registration.json holds.  Raises: BadInput: something else."""
    keys = ("rules", "since", "batches", "history")
    try:
        found = json.loads(content)
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in keys):
        raise BadInput(f"{where}: expected mappings {', '.join(keys)}; restore it from git")
    return found


def git(folder: Path, *arguments: str) -> bytes:
    """Return what a git command prints; nothing where it fails or is missing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""


def _processor() -> str | None:
    """The model's name; ``platform.processor`` does not know it on Linux."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        return platform.processor() or None
    return found[1].strip() if found else None
