"""What several commands need: errors in one line, a console, batch files, stored runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

    from gqc_lab.runs.plan import Batch
    from gqc_lab.runs.results import Runs


def fail(message: object) -> NoReturn:
    print(f"gqc: {message}", file=sys.stderr)
    raise SystemExit(2)


def make_console() -> Console:
    from rich.console import Console

    # A log file has no width of its own; 80 columns would cut tables.
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def read(file: Path) -> Batch:
    from gqc_lab.runs.plan import read_batch

    return read_batch(file)


def load(runs: Path, where: str | None, *, skip_damaged: bool = False) -> Runs:
    from gqc_lab.runs.results import load

    if where is None:
        return load(runs, skip_damaged=skip_damaged)
    from duckdb import Error

    try:
        return load(runs, where, skip_damaged=skip_damaged)
    except Error as error:
        fail(f"--where {where!r}: {str(error).splitlines()[0]}")
