"""What several commands need: a group of commands, a console, a batch file as argument."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

Runs = Annotated[Path, typer.Option("--runs", help="Folder of the run store.")]
File = Annotated[Path, typer.Argument(help="A batch file (YAML).")]


def group(description: str) -> typer.Typer:
    """Return a group of commands."""
    return typer.Typer(
        help=description, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )


def make_console() -> "Console":
    from rich.console import Console

    # A log file has no width of its own; 80 columns would cut tables.
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
