"""Progress of a batch: one bar in all and a line per running notebook; plain lines in a log."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gqc_lab.runs.plan import Batch, Run


def describe(run: Run) -> str:
    """Return the varied parameters, which set the run apart from its siblings."""
    return " ".join(f"{name}={show_value(run.parameters[name])}" for name in run.varied)


def show_value(value: Any) -> str:
    """Return a parameter's value in few characters."""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


class BatchProgress:
    """Listener to :func:`gqc_lab.runs.batch.execute_batch`; use as a context manager."""

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

    def __enter__(self) -> BatchProgress:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def kept(self, count: int) -> None:
        self.bars.update(self.total, advance=count)

    def started(self, run: Run) -> None:
        self.begun[run.id] = time.monotonic()
        self.lines[run.id] = self.bars.add_task(
            f"  {run.id[:8]} {describe(run)}".replace("[", r"\["), total=self.num_cells, text=""
        )

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
        self.note(f"{run.id} {status} {seconds:.1f} s {describe(run)}{error}")
        if outcome.get("folder"):
            self.note(f"  its notebook and traceback: {outcome['folder']}")
        if status in {"finished", "failed"}:
            self.bars.update(self.total, advance=1)
