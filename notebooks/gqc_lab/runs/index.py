"""What listings need of each run of a store; of a large store kept in ``index.json``.

The index is believed as long as no file of a run has another size, time or inode than when the
run was read, and made again where it is missing, damaged or of another version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqc_lab.runs.store import RECORD, RESULT, CorruptRun, Store

INDEX = "index.json"
_FEW = 200  # runs, which are read as quickly without an index
_VERSION = 1


@dataclass
class Summary:
    """What is listed of a finished run.

    Args:
        notebook, parameters, started, seconds, attempts: as in its run.json.
        rows: of its result.json.
        files: hash of each file, by name.
        stamps: what tells whether a file has changed, by name.
        is_whole: whether all files were verified, not just these two.
    """

    notebook: str
    parameters: dict[str, Any]
    started: float
    seconds: float
    attempts: int
    rows: list[dict[str, Any]]
    files: dict[str, str]
    stamps: dict[str, list[int]]
    is_whole: bool


def summarize(
    store: Store, keys: Collection[str], *, is_whole: bool = False
) -> dict[str, Summary | CorruptRun]:
    """Return a summary of each finished run, or what is wrong with it, by id.

    Args:
        is_whole: verify all files, where that was not done since they were written.
    Raises: OSError: a run cannot be read, which proves no damage.
    """
    known = _load(store.root / INDEX) if len(keys) > _FEW else {}
    found: dict[str, Summary | CorruptRun] = {}
    num_read = 0
    for key in sorted(keys):
        old = known.get(key)
        try:
            if old and old.is_whole >= is_whole and old.stamps == _stamps(store, key, old.stamps):
                found[key] = old
                continue
            num_read += 1
            found[key] = _read(store, key, is_whole)
        except CorruptRun as error:
            found[key] = error
    if num_read and len(keys) > _FEW:
        present = store.finished()
        _save(store.root / INDEX, {k: s for k, s in {**known, **found}.items() if k in present})
    return found


def _stamps(store: Store, key: str, names: Iterable[str]) -> dict[str, list[int]]:
    """Return what changes with each file.  Raises: CorruptRun: one is missing."""
    stamps = {}
    for name in names:
        try:
            state = os.stat(f"{store.root}/{key}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            raise CorruptRun(f"{name}: missing") from None
        stamps[name] = [state.st_mtime_ns, state.st_size, state.st_ino]
    return stamps


def _read(store: Store, key: str, is_whole: bool) -> Summary:
    record = store.record(key)
    stamps = _stamps(store, key, (RECORD, *record["files"]))
    for name in record["files"] if is_whole else ():
        store.read(key, name, record)
    result = json.loads(store.read(key, RESULT, record))
    return Summary(
        notebook=result["notebook"],
        parameters=result["parameters"],
        started=record.get("started", 0.0),
        seconds=record.get("seconds", 0.0),
        attempts=record.get("attempts", 1),
        rows=result["results"],
        files=record["files"],
        stamps=stamps,
        is_whole=is_whole,
    )


def _load(path: Path) -> dict[str, Summary]:
    try:
        checksum, _, body = path.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest() != checksum.decode():
            return {}
        content = json.loads(body)
        if content["version"] != _VERSION:
            return {}
        return {key: Summary(**each) for key, each in content["runs"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _save(path: Path, found: dict[str, Summary | CorruptRun]) -> None:
    runs = {key: vars(each) for key, each in found.items() if isinstance(each, Summary)}
    body = json.dumps({"version": _VERSION, "runs": runs}, separators=(",", ":")).encode()
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with contextlib.suppress(OSError):  # a store that is only read needs none
        part.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        os.replace(part, path)
