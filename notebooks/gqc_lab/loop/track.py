"""Run an experiment from a notebook cell with a progress bar, checkpoints and exact resume."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from gqc_lab.loop.checkpoints import checkpoint_path, resume, save_checkpoint
from gqc_lab.loop.experiment import Experiment
from gqc_lab.stats.numbers import decimals

Record = dict[str, Any]
Sink = Callable[[Record], None]


def track(
    experiment: Experiment,
    to: Sink | None = None,
    *,
    checkpoint: str | Path | None = None,
    every_seconds: float = 30.0,
    has_bar: bool = True,
) -> Iterator[Record]:
    """Train ``experiment`` to its end and yield its remaining records.

    Args:
        experiment: any experiment, new or already begun.
        to: called with the numbers of each record, a flat dict without flags, texts and None:
            ``wandb.log``, or for TensorBoard a function that gives each to ``add_scalar``.
        checkpoint: the file to resume from, if it exists, and to save to, also at the end, when
            the loop is left early, and at an interrupt, which waits for the microbatch to finish
            (a second one does not).  None: `checkpoint_path` in the folder ``GQC_RUN_DIR`` of the
            environment, which a batch sets for its runs; without it nothing is saved.
        every_seconds: the shortest time between two saves [s], > 0.
        has_bar: show a tqdm bar on standard error.
    Raises: ValueError: a bad argument, or a checkpoint of another experiment.
    """
    if not every_seconds > 0:
        raise ValueError(f"every_seconds={every_seconds!r}: expected > 0")
    if to is not None and not callable(to):
        raise ValueError(f"to={to!r}: expected a callable such as wandb.log, or None")
    if checkpoint is None and (folder := os.environ.get("GQC_RUN_DIR")):
        checkpoint = checkpoint_path(folder, experiment)
    path = Path(checkpoint) if checkpoint is not None else None

    def records() -> Iterator[Record]:  # begins at the first one; what is above, at the call
        if path is not None:
            resume(experiment, path)
        saved_at, saved_microbatch = time.monotonic(), experiment.microbatch
        bar: tqdm[Any] = tqdm(
            total=experiment.total,
            initial=experiment.done,
            desc=experiment.label,
            unit=f" {experiment.unit}",
            unit_scale=True,
            mininterval=0.25,
            dynamic_ncols=True,
            disable=not has_bar,
        )
        shown: dict[str, str] = {}
        try:
            while True:
                with _interrupt_deferred():
                    record = next(experiment, None)
                if record is None:
                    return
                if to is not None:  # loggers refuse other values, and would draw flags as curves
                    numbers = {n: v for n, v in record.items() if isinstance(v, int | float)}
                    to({n: v for n, v in numbers.items() if not isinstance(v, bool)})
                if has_bar:
                    bar.set_postfix(shown := shown | _latest(record), refresh=False)
                    bar.update(experiment.done - bar.n)
                if path is not None and time.monotonic() - saved_at >= every_seconds:
                    save_checkpoint(experiment, path)
                    saved_at, saved_microbatch = time.monotonic(), experiment.microbatch
                yield record
        finally:
            bar.close()
            if path and experiment.microbatch > saved_microbatch and experiment.is_whole:
                save_checkpoint(experiment, path)

    return records()


def _latest(record: Record) -> dict[str, str]:
    """Return the losses and draws of a record, as they stand behind the bar."""
    found = {"loss": decimals(record["loss"], 3)}
    if record.get("val_loss") is not None:
        found["val"] = decimals(record["val_loss"], 3)
    if record.get("stepped") and record.get("num_draws") is not None:
        found["draws"] = str(record["num_draws"])
    return found


@contextlib.contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Finish the microbatch before an interrupt stops the run; a second one stops it at once."""
    previous = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()  # which alone gets signals
    if not is_main or previous is not signal.default_int_handler:
        yield  # someone else decides what an interrupt means
        return
    is_waiting = False

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal is_waiting
        if is_waiting:
            raise KeyboardInterrupt
        is_waiting = True

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if is_waiting:
        raise KeyboardInterrupt
