"""Run an experiment from a notebook cell with a progress bar, checkpoints and exact resume."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch
from tqdm import tqdm

from gqc_lab.loop.appended import AppendedHistory
from gqc_lab.loop.experiment import Experiment

Record = dict[str, Any]
Sink = Callable[[Record], None]


def track(
    experiment: Experiment,
    to: str | Sink | None = None,
    *,
    checkpoint: str | Path | None = None,
    every_seconds: float = 30.0,
    has_bar: bool = True,
) -> Iterator[Record]:
    """Train ``experiment`` to its end and yield its remaining records.

    Args:
        experiment: any experiment, new or already begun.
        to: where the numbers of records go: ``"tensorboard:DIR"`` (a folder in DIR named by
            `run_name`); a callable such as ``wandb.log``, which gets a flat dict of them, without
            what is None, a flag, a text or nested; or None.
        checkpoint: the file to resume from, if it exists, and to save to: every ``every_seconds``,
            at the end, when the loop is left early, and at an interrupt, which waits for the
            microbatch to finish (a second one does not).  None: `checkpoint_path` in the folder
            named by the environment variable ``GQC_RUN_DIR``, which a batch sets for its runs;
            without that variable nothing is saved.
        every_seconds: the shortest time between two saves [s], > 0.
        has_bar: show a tqdm bar on standard error.
    Yields: the record of each microbatch.
    Raises:
        ValueError: a bad argument, or a checkpoint of another experiment.
    """
    if not every_seconds > 0:
        raise ValueError(f"every_seconds={every_seconds!r}: expected > 0")
    sink, close_sink = _open_sink(to, experiment)
    if checkpoint is None and (folder := os.environ.get("GQC_RUN_DIR")):
        checkpoint = checkpoint_path(folder, experiment)
    path = Path(checkpoint) if checkpoint is not None else None
    return _track(experiment, sink, close_sink, path, every_seconds, has_bar)


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

    The history is next to it, in ``path.history``, to which each save appends what is new.
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
    state["history"] = history.append(done, rows)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(experiment: Experiment, path: str | Path) -> bool:
    """Resume ``experiment`` from ``path`` and return True, or False if nothing can be resumed.

    A damaged file is renamed to ``*.corrupt`` and reported on standard error; the run then starts
    from the beginning.

    Raises:
        ValueError: the file is intact but of another experiment; nothing has changed.
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
        _say(f"{path}: {reason}; renamed to {aside.name}, starting from the beginning")
        return False
    experiment.load_state_dict(state)
    experiment.saved[path] = history
    return True


class DamagedFile(ValueError):
    """A checkpoint file that cannot be read."""


def _read_patiently(path: Path) -> tuple[dict[str, Any], AppendedHistory]:
    """Read a checkpoint, again where a network share fails for a moment."""
    for pause in (0.1, 0.4, None):
        history = AppendedHistory(path)
        try:
            with open(path, "rb") as file:
                return _read_state(file, history), history
        except OSError:
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("not reached")


def _read_state(file: IO[bytes], history: AppendedHistory) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:  # torch.load does not look at the checksums
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"wrong checksum of {bad}")
        file.seek(0)
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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFile(reason) from error
    return state


def _track(
    experiment: Experiment,
    sink: Sink | None,
    close_sink: Callable[[], None],
    path: Path | None,
    every_seconds: float,
    has_bar: bool,
) -> Iterator[Record]:
    if path is not None and load_checkpoint(experiment, path):
        _say(f"{experiment.label}: resumed after microbatch {experiment.microbatch} from {path}")
    saved_at, saved_microbatch = time.monotonic(), experiment.microbatch
    bar = _Bar(experiment) if has_bar else None
    try:
        while True:
            with _interrupt_deferred():
                record = next(experiment, None)
            if record is None:
                return
            if sink is not None:
                sink(_numbers(record))
            if bar is not None:
                bar.show(record)
            if path is not None and time.monotonic() - saved_at >= every_seconds:
                save_checkpoint(experiment, path)
                saved_at, saved_microbatch = time.monotonic(), experiment.microbatch
            yield record
    finally:
        if bar is not None:
            bar.close()
        close_sink()
        if path is not None and experiment.microbatch > saved_microbatch and experiment.is_whole:
            save_checkpoint(experiment, path)


class _Bar:
    """A progress bar in the experiment's unit, with the latest losses and draws."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._postfix: dict[str, str] = {}
        self._bar = tqdm(
            total=experiment.total,
            initial=experiment.done,
            desc=experiment.label,
            unit=f" {experiment.unit}",
            unit_scale=True,
            mininterval=0.25,
            dynamic_ncols=True,
        )

    def show(self, record: Record) -> None:
        self._postfix["loss"] = f"{record['loss']:.3f}"
        if record.get("val_loss") is not None:
            self._postfix["val"] = f"{record['val_loss']:.3f}"
        if record.get("stepped") and record.get("num_draws") is not None:
            self._postfix["draws"] = str(record["num_draws"])
        self._bar.set_postfix(self._postfix, refresh=False)
        self._bar.update(self._experiment.done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


@contextlib.contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Finish the microbatch before an interrupt stops the run; a second one stops it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread only
        return
    is_waiting = False

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal is_waiting
        if is_waiting:
            raise KeyboardInterrupt
        is_waiting = True

    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler:
        yield  # someone else decides what an interrupt means
        return
    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if is_waiting:
        raise KeyboardInterrupt


def _open_sink(
    to: str | Sink | None, experiment: Experiment
) -> tuple[Sink | None, Callable[[], None]]:
    if to is None:
        return None, lambda: None
    if callable(to):
        return to, lambda: None
    kind, _, folder = to.partition(":")
    if kind != "tensorboard" or not folder:
        raise ValueError(f"to={to!r}: expected 'tensorboard:DIR', a callable, or None")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(f"to={to!r} needs tensorboard: pip install tensorboard") from None
    writer = SummaryWriter(str(Path(folder) / run_name(experiment)))

    def write(numbers: Record) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, numbers["microbatch"])

    return write, writer.close


def _numbers(record: Record) -> Record:
    """Leave out what loggers refuse, or would draw as a curve that it is not."""
    numbers = {n: value for n, value in record.items() if isinstance(value, int | float)}
    return {n: value for n, value in numbers.items() if not isinstance(value, bool)}


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)
