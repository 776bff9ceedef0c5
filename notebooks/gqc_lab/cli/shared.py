"""What several commands need: errors in one line, a console, batch files, stored runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from gqc_lab.runs.plan import Batch


def make_console() -> Console:
    from rich.console import Console

    # A log file has no width of its own; 80 columns would cut tables.
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def read(file: Path) -> Batch:
    from gqc_lab.runs.plan import read_batch

    return read_batch(file)
