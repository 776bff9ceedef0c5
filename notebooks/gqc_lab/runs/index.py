"""What listings need of each run of a store; of a large store kept in the file ``index``.

The index is believed as long as no file that counts has another size, time or inode than when the
run was read, and made again where it is missing, damaged or of another version.
"""

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

INDEX = "index"  # a checksum, then JSON
_FEW = 200  # runs, which are read as quickly without an index
_VERSION = 2


@dataclass
class Summary:
    """What is listed of a finished run.

    Args:
        notebook, parameters, started, seconds, attempts: as in its run.json.
        rows: of its result.json.
        stamps: what tells whether a file has changed, by name.
        is_whole: whether all files were verified, not just these two.
    """

    notebook: str
    parameters: dict[str, Any]
    started: float
    seconds: float
    attempts: int
    rows: list[dict[str, Any]]
    stamps: dict[str, str]
    is_whole: bool


def summarize(
    store: Store, keys: Collection[str], *, is_whole: bool = False
) -> dict[str, Summary | CorruptRun | OSError]:
    """Return a summary of each finished run, or why there is none, by id.

    An OSError says that the run cannot be read, which proves no damage.  A run that was deleted
    meanwhile is left out.

    Args:
        is_whole: verify all files, where that was not done since they were written.
    """
    known = _load(store.root / INDEX) if len(keys) > _FEW else {}
    found: dict[str, Summary | CorruptRun | OSError] = {}
    num_read = 0
    for key in sorted(keys):
        old = known.get(key)
        try:
            if old and old.is_whole >= is_whole:
                names = old.stamps if is_whole else (RECORD, RESULT)
                if _stamps(store, key, names).items() <= old.stamps.items():
                    found[key] = old
                    continue
            num_read += 1
            found[key] = _read(store, key, is_whole)
        except (CorruptRun, OSError) as error:
            if store.folder(key).is_dir():
                found[key] = error
    if num_read and len(keys) > _FEW:
        present = store.finished()
        _save(store.root / INDEX, {k: s for k, s in {**known, **found}.items() if k in present})
    return found


def describe_damage(error: CorruptRun | OSError) -> str:
    """Say what is wrong with a run, and what to do."""
    if isinstance(error, OSError):
        return f"cannot be read ({error}), which proves no damage; mend the access, or try again"
    return f"is corrupt ({error}); run its batch again"


def _stamps(store: Store, key: str, names: Iterable[str]) -> dict[str, str]:
    """Return what changes with each file.  Raises: CorruptRun: one is missing."""
    stamps = {}
    for name in names:
        try:
            state = os.stat(f"{store.root}/{key}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            raise CorruptRun(f"{name}: missing") from None
        stamps[name] = f"{state.st_mtime_ns} {state.st_size} {state.st_ino}"
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
        stamps=stamps,
        is_whole=is_whole,
    )


def _load(path: Path) -> dict[str, Summary]:
    try:
        checksum, _, body = path.read_bytes().partition(b"\n")
        content = json.loads(body)
        if hashlib.sha256(body).hexdigest() != checksum.decode() or content["version"] != _VERSION:
            return {}
        return {key: Summary(**each) for key, each in content["runs"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _save(path: Path, found: dict[str, Summary | CorruptRun | OSError]) -> None:
    runs = {key: vars(each) for key, each in found.items() if isinstance(each, Summary)}
    body = json.dumps({"version": _VERSION, "runs": runs}, separators=(",", ":")).encode()
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with contextlib.suppress(OSError):  # a store that is only read needs none
        part.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        os.replace(part, path)
