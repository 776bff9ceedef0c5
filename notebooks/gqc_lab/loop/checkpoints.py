"""Checkpoints of an experiment, and runs that were steered by hand, as files.

A checkpoint is the state without its history, which is in ``PATH.history`` and grows by its new
records.  Each line of it is JSON: how many records there are, and the columns of those of one save.
The checkpoint holds how many bytes are its own, and their hash; what a killed save left behind them
is overwritten.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import re
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils._pytree import tree_map_only
from tqdm import tqdm

from gqc_lab.loop.experiment import Experiment

Columns = dict[str, list[Any]]
NUMPY_NUMBERS: list[Any] = [type(np.dtype(kind)) for kind in "?ilqfd"]
NUMPY_NUMBERS += [np.float64().__reduce__()[0], np.dtype]


def run_name(experiment: Experiment) -> str:
    """Return a file name: the label and a short hash of what identifies the run."""
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", experiment.label) or "experiment"
    text = json.dumps(experiment.identity(), sort_keys=True)
    return f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def checkpoint_path(folder: str | Path, experiment: Experiment) -> Path:
    """Return the path of the checkpoint of ``experiment`` in ``folder``."""
    return Path(folder) / f"{run_name(experiment)}.ckpt"


def save_checkpoint(experiment: Experiment, path: str | Path) -> None:
    """Write the state; at any moment ``path`` is either the old file or the new one, complete.

    Raises: TypeError: it holds what could not be loaded.  OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    history = experiment.saved.setdefault(path, AppendedHistory(path))
    state = experiment.state_dict(history.rows)
    # The last record may still change: numbers can be logged after it.
    rows = max(0, state["microbatch"] - 1)
    done = {name: column[:-1] for name, column in state["columns"].items()}
    done |= {name: experiment.column(name)[:rows] for name in done.keys() - history.names}
    state["columns"] = {name: column[-1:] for name, column in state["columns"].items()}
    check_readable(state)
    state["history"] = history.append(done, rows)
    part = path.with_name(f".{path.name}.{os.getpid()}.{get_ident()}.part")
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except RuntimeError as error:
        full = error.__context__  # which torch's own error hides
        raise (full if isinstance(full, OSError) else error) from None
    finally:
        part.unlink(missing_ok=True)


def check_readable(state: Mapping[str, Any]) -> None:
    """Refuse what ``torch.load(weights_only=True)`` does not read.  Raises: TypeError."""
    for name, value in {**state, **state["parts"], "parts": None}.items():
        file = io.BytesIO()
        try:
            torch.save(tree_map_only(torch.Tensor, lambda _: None, value), file)
            file.seek(0)
            with torch.serialization.safe_globals(NUMPY_NUMBERS):
                torch.load(file, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # pickle raises whatever it trips over
            found = re.search(r"GLOBAL (\S+)|(?<=class )\S+", str(error))
            raise TypeError(
                f"{name!r} cannot be loaded from a checkpoint: its state_dict() holds "
                f"{found[0] if found else error}; expected tensors, numbers, texts, lists and dicts"
            ) from error


def try_to_save(experiment: Experiment, path: Path) -> str | None:
    """Call `save_checkpoint`; return why it could not be written, which ends no training."""
    try:
        save_checkpoint(experiment, path)
    except OSError as error:
        number = experiment.microbatch
        return f"{path}: not saved after microbatch {number}, and tried again later: {error!r}"
    return None


def load_checkpoint(experiment: Experiment, path: str | Path) -> bool:
    """Resume ``experiment`` from ``path`` and return True, or False if nothing can be resumed.

    A damaged file is renamed to ``*.corrupt`` and reported on standard error; the run then starts
    from the beginning.

    Raises:
        ValueError: the file is intact but of another experiment, or holds objects; nothing has
            changed.
        OSError: it cannot be read, which proves no damage.
    """
    path = Path(path)
    if not path.exists():
        return False
    try:
        state, history = _read_patiently(path)
    except DamagedFile as error:
        aside = path.with_name(path.name + ".corrupt")
        os.replace(path, aside)
        reason = f"not a readable checkpoint ({error})"
        say(f"{path}: {reason}; renamed to {aside.name}, starting from the beginning")
        return False
    experiment.load_state_dict(state)
    experiment.saved[path] = history
    return True


def resume(experiment: Experiment, path: Path) -> bool:
    """Call `load_checkpoint`, and say what was resumed."""
    if is_resumed := load_checkpoint(experiment, path):
        say(f"{experiment.label}: resumed after microbatch {experiment.microbatch} from {path}")
    return is_resumed


class DamagedFile(ValueError):
    """A checkpoint file that cannot be read."""


def _read_patiently(path: Path) -> tuple[dict[str, Any], "AppendedHistory"]:
    """Read a checkpoint, again where a network share fails for a moment."""
    for pause in (0.1, 0.4):
        with contextlib.suppress(OSError):
            return _read_state(path)
        time.sleep(pause)
    return _read_state(path)


def _read_state(path: Path) -> tuple[dict[str, Any], "AppendedHistory"]:
    history = AppendedHistory(path)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:  # torch.load does not look at the checksums
                if (bad := archive.testzip()) is not None:
                    raise ValueError(f"wrong checksum of {bad}")
            file.seek(0)
            with torch.serialization.safe_globals(NUMPY_NUMBERS):
                state = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise ValueError(f"expected a dict, found {type(state).__name__}")
            if "history" in state:  # else it is of a version that kept all of it inside
                state["columns"] = history.read(state.pop("history"), state["columns"])
        except Exception as error:  # the readers raise whatever they trip over
            # Of a damaged file they ask the system for what is not there.
            damage = {errno.EINVAL, errno.ENOENT, None}
            if isinstance(error, OSError) and error.errno not in damage:
                raise
            if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
                raise ValueError(
                    f"{path}: intact, but it holds objects that torch does not load with "
                    "weights_only=True; expected tensors, numbers, texts, lists and dicts"
                ) from error
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DamagedFile(reason) from error
    return state, history


class AppendedHistory:
    """The file next to the checkpoint at ``path`` that holds its history."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.history")
        self.rows = self.size = 0
        self.names: set[str] = set()
        self._hash = hashlib.sha256()

    def append(self, columns: Columns, rows: int) -> dict[str, Any]:
        """Write the records from `rows` on, and return what :meth:`read` needs.

        Args:
            columns: of the new records, but all of a column that is not among `names`.
            rows: the number of all records.
        """
        line = json.dumps([rows, columns]).encode() + b"\n" if rows > self.rows else b""
        with open(self.path, "r+b" if self.size else "wb") as file:
            file.truncate(self.size)
            file.seek(self.size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._hash.update(line)
        self.names |= set(columns) if line else set()
        self.rows, self.size = max(rows, self.rows), self.size + len(line)
        return {"bytes": self.size, "sha256": self._hash.hexdigest()}

    def read(self, mark: Mapping[str, Any], last: Columns) -> Columns:
        """Return the columns that were written up to ``mark``, and the ``last`` record after them.

        Raises: ValueError: the file does not hold them.
        """
        with open(self.path, "rb") as file:
            content = file.read(mark["bytes"])
        self._hash = hashlib.sha256(content)
        if self._hash.hexdigest() != mark["sha256"]:
            raise ValueError(f"{self.path.name} does not match the checkpoint")
        columns: Columns = {}
        for line in content.splitlines():
            rows, new = json.loads(line)
            _join(columns, new, rows)
            self.rows = rows
        self.names, self.size = set(columns), len(content)
        _join(columns, last, self.rows + 1)
        return columns


def _join(columns: Columns, new: Columns, rows: int) -> None:
    """Append ``new`` records, up to ``rows`` in all; a column that is new may be there whole."""
    for name in {**columns, **new}:
        values = new.get(name, [])
        column = columns.setdefault(name, [None] * (rows - len(values)))
        column += values
        column += [None] * (rows - len(column))


def save_run(experiment: Experiment, folder: str | Path, parameters: Mapping[str, Any]) -> Path:
    """Write the run to a new folder in ``folder``, named after the run.

    - ``history.parquet``: a row per record;
    - ``result.json``: `Experiment.summary`, with ``is_steered``, and the config;
    - ``parameters.yaml``: ``parameters`` and the ``changes`` that were made during the run, for
      ``gqc run NOTEBOOK -f parameters.yaml``, which repeats it bit for bit;
    - ``run.ckpt``: the state, for `gqc_lab.loop.track`.
    """
    folder, number = Path(folder), 1
    while (place := folder / f"{run_name(experiment)}-{number}").exists():
        number += 1
    place.mkdir(parents=True)
    experiment.history.to_parquet(place / "history.parquet", index=False)
    identity = experiment.identity()
    result = {"results": [experiment.summary()], **identity, "changes": experiment.changes}
    (place / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    plain = json.loads(json.dumps({**parameters, "changes": experiment.changes}))  # no tuples
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)
    (place / "parameters.yaml").write_text(text, encoding="utf-8")
    save_checkpoint(experiment, place / "run.ckpt")
    return place


def say(message: str) -> None:
    """Write a line to standard error, above a progress bar."""
    tqdm.write(message, file=sys.stderr)
