"""What a batch has done, does, has still to do and will cost."""

import json
import math
import re
import time
from collections.abc import Collection, Iterator, Mapping
from statistics import median
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gqc_lab.errors import BadInput
from gqc_lab.runs.index import Summary, describe_damage, summarize
from gqc_lab.runs.plan import Batch, Run, show_value
from gqc_lab.runs.report import find_function
from gqc_lab.runs.store import RECORD, CorruptRun, Store, read_note
from gqc_lab.stats.numbers import decimals

_WATCH_SECONDS = 2.0
_WRONG = {"failed", "died", "corrupt", "unreadable"}
_SHOWN = 40  # rows; a plan of thousands is counted, not listed


def statuses(batch: Batch, store: Store, *, is_checked: bool = True) -> dict[str, str]:
    """Return by id: finished, failed, running, interrupted, died, corrupt, unreadable or waiting.

    Args:
        is_checked: look for damaged runs among those that are finished.
    """
    keys = store.finished() & {run.id for run in batch.runs}
    stored = summarize(store, keys, is_whole=True) if is_checked else dict.fromkeys(keys)
    found = {}
    for run in batch.runs:
        if run.id in stored:
            if isinstance(stored[run.id], CorruptRun):
                found[run.id] = "corrupt"
            else:
                found[run.id] = "unreadable" if isinstance(stored[run.id], OSError) else "finished"
        elif store.partial(run.id).is_dir():
            found[run.id] = _partial_status(store, run.id)
        else:
            found[run.id] = "failed" if store.failed(run.id).is_dir() else "waiting"
    return found


def _partial_status(store: Store, key: str) -> str:
    if store.is_running(key):
        return "running"
    note = read_note(store.partial(key) / RECORD)
    return "interrupted" if note.get("status") == "interrupted" else "died"


def estimate(batch: Batch, store: Store, left: Collection[str], jobs: int) -> float | None:
    """Return the seconds to go, from earlier runs, or None if no run of this notebook has finished.

    A run is expected to take the median of the runs that differ from it in the seed only, or
    else of all runs of the notebook.
    """
    alike: dict[str, list[float]] = {}
    for run in _of_notebook(batch, store).values():
        if run.attempts == 1:
            alike.setdefault(_but_seed(run.parameters), []).append(run.seconds)
    if not alike:
        return None
    medians = {key: median(seconds) for key, seconds in alike.items()}
    usual = median(seconds for each in alike.values() for seconds in each)
    waiting = [run for run in batch.runs if run.id in left]
    total = sum(medians.get(_but_seed(run.parameters), usual) for run in waiting)
    return total / min(jobs, max(1, len(waiting)))


def _of_notebook(batch: Batch, store: Store) -> dict[str, Summary]:
    found = summarize(store, store.finished()).items()
    name = batch.notebook.name
    return {key: each for key, each in found if isinstance(each, Summary) and each.notebook == name}


def _but_seed(parameters: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in parameters.items() if k != "seed"}, sort_keys=True)


def count_flops(batch: Batch) -> dict[str, float]:
    """Return each run's floating-point operations, by id; empty without ``cost`` in the file.

    Raises: BadInput: there is no such function, it refuses the parameters of a run, or it returns
        something else than a number > 0.
    """
    if batch.cost is None:
        return {}
    name, found = batch.cost.flops, {}
    function = find_function("cost: flops", name)
    for run in batch.runs:
        try:
            flops = function(dict(run.parameters))
        except ValueError as error:
            raise BadInput(f"cost: {name}: {error}") from None
        if not (isinstance(flops, int | float) and 0 < flops < math.inf):
            raise BadInput(f"cost: {name} returned {flops!r}: expected a number of operations > 0")
        found[run.id] = float(flops)
    return found


def describe_cost(batch: Batch, flops: dict[str, float], left: Collection[str], jobs: int) -> str:
    """Say in a line what is left: operations and time, with ``jobs`` machines at a time."""
    if batch.cost is None:
        return ""
    speed = batch.cost.flops_per_second
    total = sum(flops[key] for key in left)
    longest = max((flops[key] for key in left), default=0.0)
    hours = max(total / min(jobs, max(1, len(left))), longest) / speed / 3600
    return (
        f"cost: {total:.3g} floating-point operations to go, {hours:.3g} h at {speed:.3g} per "
        f"second and run with --jobs {jobs}"
    )


def print_plan(batch: Batch, store: Store, jobs: int, console: Console) -> None:
    """Print the runs with ids and status, the time left, and what the batch file says on the cost.

    Raises: BadInput: the cost cannot be computed.
    """
    found, flops = statuses(batch, store), count_flops(batch)
    heads = ("run", "status", *(batch.runs[0].varied if batch.runs else ()))
    table = Table(*heads, title=f"{batch.name}: {batch.notebook.path.name}", title_justify="left")
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
        console.print(f"each run takes {needed}", highlight=False)
    if not left:
        return
    if flops:
        console.print(describe_cost(batch, flops, left, jobs), highlight=False)
    seconds = estimate(batch, store, left, jobs)
    about = "unknown, no run of this notebook has finished yet"
    if seconds is not None:
        about = f"about {_duration(seconds)} with --jobs {jobs}"
    console.print(f"time left: {about}", highlight=False)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{decimals(seconds, 0)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def print_status(batch: Batch, store: Store, console: Console, *, is_watched: bool = False) -> int:
    """Print how many runs have which status and how those are that run or went wrong.

    Args:
        is_watched: again every two seconds, until nothing runs.
    Returns: the exit code, 1 if a run failed, died or is damaged.
    """
    if is_watched:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while "running" in (found := statuses(batch, store, is_checked=False)).values():
                live.update(Text("\n".join(_status_lines(batch, store, found))), refresh=True)
                time.sleep(_WATCH_SECONDS)
    found = statuses(batch, store)
    for line in _status_lines(batch, store, found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 1 if _WRONG & set(found.values()) else 0


def _status_lines(batch: Batch, store: Store, found: Mapping[str, str]) -> Iterator[str]:
    for status in ("finished", *sorted(_WRONG), "running", "interrupted", "waiting"):
        if count := sum(each == status for each in found.values()):
            yield f"{count:6d} {status}"
    for run in batch.runs:
        if found[run.id] in {"running", *_WRONG}:
            yield f"{run.id} {run.title}: {_state(store, run.id, found[run.id])}"


def _state(store: Store, key: str, status: str) -> str:
    """Say why a run failed or is damaged and where it is, or how far it is or was, and where."""
    if status in {"corrupt", "unreadable"}:
        return _damage(store, key)
    if status == "failed":
        folder = store.failed(key)
        return f"{read_note(folder / RECORD).get('error', 'its run.json is damaged')}\n  {folder}"
    note = read_note(store.partial(key) / RECORD)
    host, pid, cell, text, seconds, started = (
        note.get(name) for name in ("host", "pid", "cell", "text", "seconds", "started")
    )
    if status == "died" or not isinstance(started, float) or not isinstance(seconds, float):
        return f"{status}: process {pid} on {host}, in cell {cell}"
    share = re.search(r"(?<![\d.])([1-9]\d?)%", str(text))  # of a progress bar
    left = f", {_duration(seconds * (100 / int(share[1]) - 1))} left" if share else ""
    age = _duration(max(0.0, time.time() - started))
    return f"process {pid} on {host}, in cell {cell} after {age}{left}: {text}"


def _damage(store: Store, key: str) -> str:
    try:
        store.verify(key)
    except (CorruptRun, OSError) as error:
        return describe_damage(error)
    return ""


def find_run(batch: Batch, start: str) -> Run:
    """Return the run whose id begins with ``start``.  Raises: BadInput: none does, or several."""
    matches = [run for run in batch.runs if start and run.id.startswith(start)]
    if len(matches) != 1:
        raise BadInput(f"{start!r}: {len(matches)} runs of {batch.name} begin so; list their ids")
    return matches[0]


def explain(run: Run, batch: Batch, store: Store) -> list[str]:
    """Say in lines whether ``run`` is finished and, if not, what changed since one that is."""
    if run.id in store.finished():
        wrong = _damage(store, run.id)
        return [f"{run.id} {wrong or 'is finished; nothing that it depends on has changed'}"]
    lines = [f"{run.id} is not finished"]
    if store.failed(run.id).is_dir():
        lines.append(f"it failed: {_state(store, run.id, 'failed')}")
    if store.partial(run.id).is_dir():
        if store.is_running(run.id):
            lines.append(f"it is {store.describe_holder(run.id)}")
        else:
            status = _partial_status(store, run.id).replace("interrupted", "was interrupted")
            lines.append(f"it {status}, and continues from its checkpoint")
    others = _of_notebook(batch, store)
    if not others:
        return [*lines, f"no run of {batch.notebook.name} is in the store"]
    wanted = run.parameters.items()
    alike = {k: sum(r.parameters.get(n, ...) == v for n, v in wanted) for k, r in others.items()}
    nearest = store.record(max(others, key=lambda key: (alike[key], others[key].started)))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(nearest["started"]))
    lines.append(f"nearest in the store: {nearest['id']} of {when}; since then, or unlike it:")
    return lines + [f"  {line}" for line in differences(run, nearest)]


def differences(run: Run, record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each input of ``run`` that differs from the stored ``record``."""
    old, new = record["parameters"], run.parameters
    for name in {**old, **new}:
        if name not in old or name not in new:
            yield f"parameter {name}: {'new' if name in new else 'gone'}"
        elif old[name] != new[name]:
            yield f"parameter {name}: {show_value(old[name])} -> {show_value(new[name])}"
    for part, label in (("notebook", "notebook cell"), ("source", "source"), ("data", "data")):
        before, after = record["inputs"].get(part, {}), run.inputs[part]
        for name in sorted({**before, **after}):
            if name not in before or name not in after:
                yield f"{label} {name}: {'new' if name in after else 'gone'}"
            elif before[name] != after[name]:
                yield f"{label} {name}: changed"


class BatchProgress:
    """Listener to :func:`gqc_lab.runs.batch.execute_batch`, while its ``bars`` are entered."""

    def __init__(self, batch: Batch, console: Console) -> None:
        self.console = console
        self.num_cells = len(json.loads(batch.notebook.text)["cells"]) + 1  # papermill adds one
        self.begun: dict[str, float] = {}
        self.lines: dict[str, Any] = {}
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.total = self.bars.add_task(batch.name, total=len(batch.runs), text="")

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def kept(self, count: int) -> None:
        self.bars.update(self.total, advance=count)

    def started(self, run: Run) -> None:
        self.begun[run.id] = time.monotonic()
        self.lines[run.id] = self.bars.add_task(
            f"  {run.id[:8]} {run.title}".replace("[", r"\["), total=self.num_cells, text=""
        )
        import gqc_lab.stats.analysis  # noqa: F401  # of the table, while the first kernel starts

    def moved(self, run: Run, cell: int, text: str) -> None:
        if run.id in self.lines:
            self.bars.update(self.lines[run.id], completed=cell, text=text[:60])

    def ended(self, run: Run, outcome: dict[str, Any]) -> None:
        if run.id in self.lines:
            self.bars.remove_task(self.lines.pop(run.id))
        status = outcome["status"]
        if status in {"waiting", "busy"}:
            return
        seconds = time.monotonic() - self.begun.get(run.id, time.monotonic())
        error = f": {outcome['error']}" if outcome.get("error") else ""
        self.note(f"{run.id} {status} {decimals(seconds, 1)} s {run.title}{error}")
        if outcome.get("folder"):
            self.note(f"  its notebook and traceback: {outcome['folder']}")
        if status in {"finished", "failed"}:
            self.bars.update(self.total, advance=1)
