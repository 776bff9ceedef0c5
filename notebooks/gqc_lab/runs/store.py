"""The run store: one folder per finished run, complete or absent.

::

    runs/<id>/            a finished run, never changed again
      notebook.ipynb        as executed
      result.json           parameters and result rows
      history.parquet       one row per record, if the notebook saved one
      run.json              inputs, environment, times, and the checksums of the other files
    runs/partial/<id>/    running or interrupted; an experiment's checkpoint waits here
    runs/failed/<id>/     a run whose notebook failed: notebook and traceback.txt
    runs/quarantine/      what was found corrupt

A run is made in ``partial``, synced to disk and renamed, so that a kill or a power cut at any
moment leaves a finished folder or none.  A lock on the id keeps two batches off one run; the
system drops it when its holders die.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOK, RESULT, HISTORY, RECORD = "notebook.ipynb", "result.json", "history.parquet", "run.json"
TRACEBACK = "traceback.txt"
FORMAT = 1
_IS_ID = re.compile(r"[0-9a-f]{16}").fullmatch


class CorruptRun(Exception):
    """A finished run's folder is not what was written; the message says which file."""


def write_json(path: Path, content: Any) -> None:
    """Replace ``path`` atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """``record`` with the hash of the rest of it, so that run.json vouches for itself."""
    body = {key: value for key, value in record.items() if key != "seal"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return {**body, "seal": hashlib.sha256(text.encode()).hexdigest()}


class Store:
    """A folder of runs.

    Args:
        root: made when the first run starts, not before.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()

    def folder(self, key: str) -> Path:
        return self.root / key

    def partial(self, key: str) -> Path:
        return self.root / "partial" / key

    def failed(self, key: str) -> Path:
        return self.root / "failed" / key

    def finished(self) -> set[str]:
        """Ids of the folders of finished runs; :meth:`record` and :meth:`verify` check them."""
        if not self.root.is_dir():
            return set()
        with os.scandir(self.root) as entries:
            return {entry.name for entry in entries if _IS_ID(entry.name)}

    def record(self, key: str) -> dict[str, Any]:
        """A finished run's run.json.  Raises: CorruptRun: it is missing, torn or changed."""
        try:
            record = json.loads((self.folder(key) / RECORD).read_bytes())
        except (OSError, ValueError) as error:
            raise CorruptRun(f"{RECORD}: {error}") from None
        if not isinstance(record, dict) or seal(record)["seal"] != record.get("seal"):
            raise CorruptRun(f"{RECORD}: does not match its own checksum")
        if record.get("id") != key:
            raise CorruptRun(f"{RECORD}: is of run {record.get('id')!r}")
        return record

    def verify(self, key: str) -> dict[str, Any]:
        """As :meth:`record`, after reading every file of the run.

        Raises: CorruptRun: a file is missing or does not match its checksum.
        """
        record = self.record(key)
        for name, expected in record["files"].items():
            path = self.folder(key) / name
            if not path.is_file():
                raise CorruptRun(f"{name}: missing")
            if file_hash(path) != expected:
                raise CorruptRun(f"{name}: does not match its checksum")
        return record

    def publish(self, key: str, record: dict[str, Any]) -> None:
        """Turn ``partial/<id>`` into ``<id>``.

        Args:
            record: the run.json to write, but for the checksums.
        """
        folder = self.partial(key)
        for scrap in folder.iterdir():
            if scrap.name not in {NOTEBOOK, RESULT, HISTORY}:
                shutil.rmtree(scrap) if scrap.is_dir() else scrap.unlink()
        files = sorted(folder.iterdir())
        record = {"format": FORMAT, **record, "files": {f.name: file_hash(f) for f in files}}
        write_json(folder / RECORD, seal(record))
        for path in [*files, folder]:
            _sync(path)
        os.rename(folder, self.folder(key))
        _sync(self.root)

    def fail(self, key: str) -> Path:
        """Move ``partial/<id>`` to ``failed/<id>``, in place of an earlier failure."""
        target = self.failed(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.forget_failure(key)
        os.rename(self.partial(key), target)
        return target

    def forget_failure(self, key: str) -> None:
        shutil.rmtree(self.failed(key), ignore_errors=True)

    def quarantine(self, key: str) -> Path:
        """Set a corrupt run aside; returns where."""
        shelf = self.root / "quarantine"
        shelf.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            target = shelf / f"{key}-{number}"
            try:
                os.rename(self.folder(key), target)
            except FileExistsError:
                number += 1
            except OSError:
                if not target.is_dir():
                    raise
                number += 1
            else:
                return target

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Hold the id's lock; yields False, at once, if another process has it.

        A child that is forked meanwhile holds the lock too, until it ends.
        """
        folder = self.root / "partial"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{key}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_held = path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino
            except BlockingIOError:
                is_held = False
            try:
                yield is_held
            finally:
                if is_held:
                    path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
