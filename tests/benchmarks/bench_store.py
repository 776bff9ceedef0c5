"""What a large run store costs, against its bars: 10,000 runs, and histories of a million records.

Commands are processes of their own, as a user has them; what counts is their processor time.

- *plan* of the batch that made the store: at most 3 s and 300 MiB;
- *list*: at most 1 s;
- *one run* of another notebook: at most 1 s more than in an empty store;
- *histories*: 8 columns of 200 histories with a million records in all, at most 2 s;
- *save* of a checkpoint with a thousand new records after a million: at most 0.1 s, by the clock.

The first command in a store reads all of it and leaves an index; it is timed apart.  ``--check``
exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import make_dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gqc_lab.loop.checkpoints import save_checkpoint
from gqc_lab.loop.experiment import Experiment
from gqc_lab.runs import load, store
from gqc_lab.runs.index import INDEX
from gqc_lab.runs.plan import Batch, read_batch
from gqc_lab.runs.store import NOTEBOOK, RESULT, Store, write_json

ROOT = Path(__file__).resolve().parents[2]
LARGE = ROOT / "notebooks" / "01_gnts_pretraining.ipynb"
TINY = ROOT / "tests" / "fixtures" / "notebooks" / "tiny.ipynb"
RUNS, HISTORIES, RECORDS, COLUMNS = 10_000, 200, 5_000, 8


def fill(batch: Batch, place: Store) -> None:
    """Store all runs of ``batch`` as finished, without executing them."""
    store._sync = lambda path: None  # type: ignore[assignment]  # four syncs a run
    names = [f"column {k}" for k in range(COLUMNS)]
    records = pd.DataFrame(np.random.default_rng(0).random((RECORDS, COLUMNS)), columns=names)
    for place_in_batch, run in enumerate(batch.runs):
        folder = place.partial(run.id)
        folder.mkdir(parents=True)
        (folder / NOTEBOOK).write_text(batch.notebook.text)
        common = {"notebook": batch.notebook.name, "parameters": run.parameters}
        rows = [{f"number {k}": k / 7 for k in range(12)}]
        write_json(folder / RESULT, {"run": run.id, **common, "results": rows, "info": {}})
        if place_in_batch % (RUNS // 2) < HISTORIES // 2:
            records.to_parquet(folder / store.HISTORY, index=False)
        times = {"started": 0.0, "seconds": 1.0, "attempts": 1}
        place.publish(run.id, {"id": run.id, **common, "inputs": run.inputs, **times})


CODE = """
import atexit, sys
from pathlib import Path
atexit.register(lambda: sys.stderr.write(Path("/proc/self/status").read_text()))
from gqc_lab.cli import main
main()
"""


def command(*arguments: object) -> tuple[float, float]:
    """Return the processor time [s] of ``gqc`` with its children, and its own memory [MiB].

    What the system reports of a child's memory counts what its parent had when it forked.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    text = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"gqc {' '.join(map(str, arguments))}: {text}")
    kilobytes = re.search(r"VmHWM:\s+(\d+)", text)
    assert kilobytes is not None
    return usage.ru_utime + usage.ru_stime, int(kilobytes[1]) / 1024


def batch_file(folder: Path, name: str, notebook: Path, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"notebook: {notebook}\n{text}\n", encoding="utf-8")
    return path


class Long(Experiment):
    """A run of a million records, without training."""

    def __init__(self) -> None:
        model = torch.nn.Linear(2, 1)
        config = make_dataclass("Config", [])()
        super().__init__(config, label="long", total=0, parts={"model": model}, generators={})
        self.add(1_000_000)

    def add(self, records: int) -> None:
        for name in ("loss", "val_loss", *(f"number {k}" for k in range(8))):
            self._columns.setdefault(name, []).extend(k / 7 for k in range(records))
        self.microbatch += records


def save_seconds(folder: Path) -> float:
    """Return the time of the quickest of five saves [s]."""
    experiment, times = Long(), []
    save_checkpoint(experiment, folder / "long.ckpt")
    for _ in range(5):
        experiment.add(1000)
        begun = time.perf_counter()
        save_checkpoint(experiment, folder / "long.ckpt")
        times.append(time.perf_counter() - begun)
    return min(times)


def measure(folder: Path) -> Iterator[tuple[str, float, float]]:
    """Yield the name of each number, the number, and the most that it may be."""
    grid = f"seeds: {RUNS // 2}\ngrid: {{methods: [[gnts], [adamw]]}}\nparameters: {{scale: smoke}}"
    large = batch_file(folder, "large", LARGE, grid)
    place = Store(folder / "runs")
    fill(read_batch(large), place)
    some = load(place.root, where=f"seed < {HISTORIES // 2}")
    begun = time.process_time()
    assert some.history.shape == (HISTORIES * RECORDS, COLUMNS + 1)
    yield "histories [s]", time.process_time() - begun, 2.0
    yield "save [s]", save_seconds(folder), 0.1
    (place.root / INDEX).unlink()
    yield "first plan [s]", command("batch", "plan", large, "--runs", place.root)[0], 60.0
    seconds, megabytes = command("batch", "plan", large, "--runs", place.root)
    yield "plan [s]", seconds, 3.0
    yield "plan [MiB]", megabytes, 300.0
    yield "list [s]", command("runs", "list", "--runs", place.root)[0], 1.0
    one = batch_file(folder, "one", TINY, "seeds: 1")
    full = command("batch", "run", one, "--runs", place.root)[0]
    empty = command("batch", "run", one, "--runs", folder / "empty")[0]
    yield "one run, over an empty store [s]", full - empty, 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    is_checked = parser.parse_args().check
    is_missed = False
    with tempfile.TemporaryDirectory() as folder:
        for name, value, most in measure(Path(folder)):
            print(f"{name:36s} {value:8.2f}  at most {most:g}", flush=True)
            is_missed |= value > most
    return int(is_checked and is_missed)


if __name__ == "__main__":
    sys.exit(main())
