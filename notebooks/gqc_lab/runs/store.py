"""The run store: one folder per finished run, complete or absent.

::

    runs/<id>/            a finished run, never changed again
      notebook.ipynb        as executed
      result.json           parameters and result rows
      history.parquet       one row per record, if the notebook saved one
      artifacts/            what else the notebook left there, such as a checkpoint
      run.json              inputs, environment, times, and the checksums of the other files
    runs/partial/<id>/    running, interrupted or died; an experiment's checkpoint waits here
    runs/failed/<id>/     a run whose notebook failed: notebook and traceback.txt
    runs/quarantine/      what was found corrupt

A run is made in ``partial``, synced to disk and renamed, so that a kill or a power cut at any
moment leaves a finished folder or none.  A lock on the id keeps two batches off one run; the
system drops it when its holder dies.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from gqc_lab.errors import BadInput

NOTEBOOK, RESULT, HISTORY, RECORD = "notebook.ipynb", "result.json", "history.parquet", "run.json"
TRACEBACK, ARTIFACTS = "traceback.txt", "artifacts"
MODULES = ".modules.json"  # the files of the modules that a run has loaded; not kept
FORMAT = 1  # of a finished run's folder; a change of it needs a way to read what is there
NO_STORE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # nothing can be stored any more
_IS_ID = re.compile(r"[0-9a-f]{16}").fullmatch


class CorruptRun(Exception):
    """A finished run's folder is not what was written; the message says which file."""


def write_json(path: Path, content: Any, *, is_durable: bool = True) -> None:
    """Replace ``path`` atomically; what is durable outlives a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(to_json(content) + "\n", encoding="utf-8")
    if is_durable:
        _sync(temporary)
    os.replace(temporary, path)


def to_json(content: Any, *, ensure_ascii: bool = True) -> str:
    """Return JSON that strict readers take: NaN is null, infinity a number that is too large."""
    text = json.dumps(content, indent=1, ensure_ascii=ensure_ascii)
    text = re.sub(r"\bNaN(?=,?$)", "null", text, flags=re.M)  # each value ends its line
    return re.sub(r"\bInfinity(?=,?$)", "1e999", text, flags=re.M)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    """Raises: CorruptRun: there is no such file.  OSError: it cannot be read, even at last."""
    for pause in (0.1, 0.4, None):  # a network share may say "stale", or give no answer
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise CorruptRun(f"{path.name}: missing") from None
        except OSError as error:
            if pause is None or error.errno in {errno.EACCES, errno.EPERM, errno.ELOOP}:
                raise
            time.sleep(pause)
    raise AssertionError("not reached")


def read_note(path: Path) -> dict[str, Any]:
    """Return the run.json of a run that is not finished; empty if there is none to be read."""
    try:
        note = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """Return ``record`` with the hash of the rest of it, so that run.json vouches for itself."""
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

    def check_writable(self) -> None:
        """Make the store.  Raises: BadInput: nothing can be written there."""
        try:
            self.partial("").mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.partial("")).close()
        except OSError as error:
            raise BadInput(f"cannot write to the run store {self.root}: {error.strerror}") from None

    def folder(self, key: str) -> Path:
        return self.root / key

    def partial(self, key: str) -> Path:
        return self.root / "partial" / key

    def failed(self, key: str) -> Path:
        return self.root / "failed" / key

    def finished(self) -> set[str]:
        """Return the ids of finished runs; :meth:`record` and :meth:`verify` check them."""
        if not self.root.is_dir():
            return set()
        with os.scandir(self.root) as entries:
            return {entry.name for entry in entries if _IS_ID(entry.name)}

    def record(self, key: str) -> dict[str, Any]:
        """Return a finished run's run.json.

        Raises:
            CorruptRun: it is missing, torn, changed, or of a later format.
            OSError: it cannot be read; that proves no damage.
        """
        try:
            record = json.loads(_read(self.folder(key) / RECORD))
        except ValueError as error:
            raise CorruptRun(f"{RECORD}: {error}") from None
        if not isinstance(record, dict) or seal(record)["seal"] != record.get("seal"):
            raise CorruptRun(f"{RECORD}: does not match its own checksum")
        if record.get("id") != key:
            raise CorruptRun(f"{RECORD}: is of run {record.get('id')!r}")
        if record["format"] != FORMAT:
            raise CorruptRun(f"{RECORD}: format {record['format']}; this gqc reads {FORMAT}")
        return record

    def read(self, key: str, name: str, record: dict[str, Any]) -> bytes:
        """Return the content of one file of a finished run, verified.

        Raises: CorruptRun: it is missing or does not match its checksum.
        """
        content = _read(self.folder(key) / name)
        if hashlib.sha256(content).hexdigest() != record["files"].get(name):
            raise CorruptRun(f"{name}: does not match its checksum")
        return content

    def verify(self, key: str) -> dict[str, Any]:
        """Return the run.json after reading every file of the run.

        Raises: CorruptRun: a file is missing or does not match its checksum.
        """
        record = self.record(key)
        for name in record["files"]:
            self.read(key, name, record)
        return record

    def publish(self, key: str, record: dict[str, Any]) -> None:
        """Turn ``partial/<id>`` into ``<id>``.

        Args:
            record: the run.json to write, but for the checksums.
        """
        folder = self.partial(key)
        for scrap in folder.iterdir():
            if scrap.name not in {NOTEBOOK, RESULT, HISTORY, ARTIFACTS} or scrap.is_symlink():
                is_folder = scrap.is_dir() and not scrap.is_symlink()
                shutil.rmtree(scrap) if is_folder else scrap.unlink()
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()]
        hashes = {path.relative_to(folder).as_posix(): file_hash(path) for path in files}
        write_json(folder / RECORD, seal({"format": FORMAT, **record, "files": hashes}))
        self._rename(key)

    def _rename(self, key: str) -> None:
        folder = self.partial(key)
        for path in [*folder.rglob("*"), folder]:
            if not path.is_symlink() and (path.is_file() or path.is_dir()):  # no pipe
                _sync(path)
        os.rename(folder, self.folder(key))
        _sync(self.root)

    def adopt(self, other: Self, key: str) -> str:
        """Copy a finished run of another store, unless there is one of this id.

        Returns: "copied", "there already", or the columns, except times, in which both differ.
        Raises: CorruptRun, OSError: a store's run is not what was written, or cannot be read.
        """
        record = other.verify(key)
        with self.lock(key) as is_held:
            if not is_held:
                return f"not copied: {self.describe_holder(key)}"
            if not self.folder(key).is_dir():
                shutil.rmtree(self.partial(key), ignore_errors=True)
                shutil.copytree(other.folder(key), self.partial(key), symlinks=True)
                self._rename(key)
                return "copied"
        ours, theirs = self._measured(key, self.verify(key)), other._measured(key, record)
        names = sorted(n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n))
        differing = [n for n in names if not re.search(r"(^|_|\.)seconds?$|_per_second$", n)]
        return f"conflict: {', '.join(differing)}" if differing else "there already"

    def _measured(self, key: str, record: dict[str, Any]) -> dict[str, str]:
        """Return the columns of a run's results and history as texts, in which NaN equals NaN."""
        rows = json.loads(self.read(key, RESULT, record))["results"]
        found = {name: repr([row.get(name) for row in rows]) for row in rows for name in row}
        if HISTORY not in record["files"]:
            return found
        from pyarrow import BufferReader, parquet

        columns = parquet.read_table(BufferReader(self.read(key, HISTORY, record))).to_pydict()
        return found | {f"history.{name}": repr(column) for name, column in columns.items()}

    def fail(self, key: str) -> Path:
        """Move ``partial/<id>`` to ``failed/<id>``, in place of an earlier failure."""
        target = self.failed(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.forget_failure(key)
        os.rename(self.partial(key), target)
        return target

    def forget_failure(self, key: str) -> None:
        shutil.rmtree(self.failed(key), ignore_errors=True)

    def quarantine(self, key: str) -> Path | None:
        """Set a corrupt run aside; returns where, or None if another batch has done so."""
        target = self.root / "quarantine" / f"{key}-{time.time_ns()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.folder(key), target)
            return target
        return None

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Hold the id's lock; yields False, at once, if another process has it."""
        path = self._lock_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "wb", 0) as file:
            is_held = False
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_held = path.stat().st_ino == os.fstat(file.fileno()).st_ino
            if is_held:
                since = time.strftime("%Y-%m-%d %H:%M:%S")
                holder = f"process {os.getpid()} on {socket.gethostname()} since {since}"
                file.truncate()
                file.write(holder.encode())
            try:
                yield is_held
            finally:
                if is_held:
                    path.unlink(missing_ok=True)

    def _lock_path(self, key: str) -> Path:
        return self.root / "partial" / f"{key}.lock"

    def is_running(self, key: str) -> bool:
        """Whether a process holds the id's lock."""
        try:
            with contextlib.suppress(FileNotFoundError), self._lock_path(key).open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def describe_holder(self, key: str) -> str:
        """Say in words who holds the lock."""
        with contextlib.suppress(OSError):
            if holder := self._lock_path(key).read_text(encoding="utf-8", errors="replace"):
                return f"in hand of {holder}"
        return "in hand of another process"

    def garbage(self, asked: Collection[str] = (), notebooks: Collection[str] = ()) -> list[Path]:
        """Return the folders of failed, quarantined and interrupted runs, and of finished runs of
        ``notebooks`` (names) that are not ``asked`` for (ids).  A run in hand is not garbage."""
        found = []
        for shelf in ("failed", "quarantine", "partial"):
            folders = (p for p in sorted((self.root / shelf).glob("*")) if p.is_dir())
            found += [folder for folder in folders if not self.is_running(folder.name)]
        for key in sorted(self.finished().difference(asked) if notebooks else ()):
            try:
                is_garbage = self.record(key)["notebook"] in notebooks
            except (CorruptRun, OSError) as error:
                is_garbage = isinstance(error, CorruptRun)
            found += [self.folder(key)] if is_garbage else []
        return found

    def remove(self, folders: Iterable[Path]) -> None:
        """Delete what :meth:`garbage` found, except runs that have started since."""
        for folder in folders:
            is_partial = folder.parent.name == "partial"
            with self.lock(folder.name) if is_partial else contextlib.nullcontext(True) as is_held:
                if is_held:  # gone at once, or who reads the store would find half of it
                    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
                    with contextlib.suppress(FileNotFoundError):  # another one deletes it
                        shutil.rmtree(folder.rename(aside))
