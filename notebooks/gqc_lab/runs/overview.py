"""What a batch has done and has still to do, without running anything."""

from __future__ import annotations

import json
from collections.abc import Collection
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from gqc_lab.runs.cost import count_flops, describe_cost
from gqc_lab.runs.plan import Batch
from gqc_lab.runs.progress import describe, show_value
from gqc_lab.runs.results import read_records
from gqc_lab.runs.store import RECORD, CorruptRun, Store

_SHOWN = 40  # rows; a plan of thousands is counted, not listed


def statuses(batch: Batch, store: Store) -> dict[str, str]:
    """By id: finished, failed, interrupted (or running elsewhere), corrupt or waiting."""
    stored = store.finished()
    failed = _names(store.root / "failed")
    partial = _names(store.root / "partial")
    found = {}
    for run in batch.runs:
        if run.id in stored:
            try:
                store.verify(run.id)
            except CorruptRun:
                found[run.id] = "corrupt"
            else:
                found[run.id] = "finished"
        elif run.id in partial:
            found[run.id] = "interrupted"
        else:
            found[run.id] = "failed" if run.id in failed else "waiting"
    return found


def _names(folder: Any) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()


def estimate(batch: Batch, store: Store, left: Collection[str], jobs: int) -> float | None:
    """Seconds to go, from earlier runs, or None if no run of this notebook has finished.

    A run is expected to take the median of the runs that differ from it in the seed only, or
    else of all runs of the notebook.
    """
    alike: dict[str, list[float]] = {}
    every: list[float] = []
    for record in read_records(store).values():
        if record["notebook"] == batch.notebook.name and record.get("attempts", 1) == 1:
            alike.setdefault(_but_seed(record["parameters"]), []).append(record["seconds"])
            every.append(record["seconds"])
    if not every:
        return None
    medians = {key: median(seconds) for key, seconds in alike.items()}
    usual = median(every)
    waiting = [run for run in batch.runs if run.id in left]
    total = sum(medians.get(_but_seed(run.parameters), usual) for run in waiting)
    return total / min(jobs, max(1, len(waiting)))


def _but_seed(parameters: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in parameters.items() if k != "seed"}, sort_keys=True)


def print_plan(batch: Batch, store: Store, jobs: int, console: Console) -> None:
    """The runs with ids and status, the time left, and what the batch file says on the cost.

    Raises: BadInput: the cost cannot be computed.
    """
    found, flops = statuses(batch, store), count_flops(batch)
    table = Table(title=f"{batch.name}: {batch.notebook.path.name}", title_justify="left")
    for name in ("run", "status", *(batch.runs[0].varied if batch.runs else ())):
        table.add_column(name)
    if flops:
        table.add_column("operations", justify="right")
    for run in batch.runs[:_SHOWN]:
        shown = [show_value(run.parameters[name]) for name in run.varied]
        shown += [f"{flops[run.id]:.3g}"] if flops else []
        table.add_row(run.id, found[run.id], *shown)
    console.print(table)
    if len(batch.runs) > _SHOWN:
        console.print(f"... and {len(batch.runs) - _SHOWN} more", highlight=False)
    left = {key for key, status in found.items() if status != "finished"}
    counts = f"{len(batch.runs) - len(left)} finished, {len(left)} to go"
    console.print(f"{len(batch.runs)} runs, {counts}", highlight=False)
    if batch.resources:
        needed = " ".join(f"{name}={value:g}" for name, value in batch.resources.items())
        console.print(f"each run takes {needed} of a Dask worker", highlight=False)
    if flops and left:
        console.print(describe_cost(batch, flops, left, jobs), highlight=False)
    seconds = estimate(batch, store, left, jobs)
    if left and seconds is None:
        console.print("time left: unknown, no run of this notebook has finished yet")
    elif left and seconds is not None:
        console.print(f"time left: about {_duration(seconds)} with --jobs {jobs}", highlight=False)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def print_status(batch: Batch, store: Store, console: Console) -> int:
    """Count the runs by status and show why runs failed; returns the exit code."""
    found = statuses(batch, store)
    for status in ("finished", "failed", "interrupted", "corrupt", "waiting"):
        count = sum(each == status for each in found.values())
        if count:
            console.print(f"{count:6d} {status}", highlight=False)
    for run in batch.runs:
        if found[run.id] == "failed":
            folder = store.failed(run.id)
            reason = json.loads((folder / RECORD).read_text(encoding="utf-8"))["error"]
            text = f"{run.id} {describe(run)}: {reason}\n  {folder}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 1 if {"failed", "corrupt"} & set(found.values()) else 0
