"""The ``gqc`` command.  Exit codes: 0 all good, 1 a run failed, 2 bad arguments, 130 interrupted.

Only Typer is imported at the start; a command imports what it needs.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

_NEEDS_LAB = "gqc: the command line needs the lab extra: pip install 'gqc-kit[lab]'"


def _make_app() -> "typer.Typer":
    import typer

    from gqc_lab.cli.batches import add_batch_commands, add_run
    from gqc_lab.cli.new import add_new_commands
    from gqc_lab.cli.paper import add_paper_commands
    from gqc_lab.cli.stored import add_gallery, add_runs_commands

    options: dict[str, Any] = {
        "no_args_is_help": True,
        "add_completion": False,
        "pretty_exceptions_enable": False,
    }
    app = typer.Typer(help="Run experiment notebooks, once or as resumable batches.", **options)
    batches = typer.Typer(help="Plan, run and inspect batches of runs.", **options)
    stored = typer.Typer(help="List, show, export and clean up stored runs.", **options)
    new = typer.Typer(**options)
    app.add_typer(batches, name="batch")
    app.add_typer(stored, name="runs")
    app.add_typer(new, name="new")
    add_run(app)
    add_batch_commands(batches)
    add_runs_commands(stored)
    add_gallery(app)
    add_paper_commands(app)
    add_new_commands(new)
    return app


def _join_parameters(arguments: list[str]) -> list[str]:
    """``-p name value``, papermill's way, as the one argument that Typer takes."""
    joined, waiting = [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        joined.append(argument)
        if argument in {"-p", "--parameter"} and len(waiting) >= 2 and "=" not in waiting[0]:
            joined.append(f"{waiting.pop(0)}={waiting.pop(0)}")
    return joined


def main() -> None:
    """The entry point."""
    # With `python -c` or `-m` the current folder comes first: its papermill.py would be executed.
    if sys.path[0] in {"", os.getcwd()}:
        del sys.path[0]
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
        import yaml  # noqa: F401
    except ModuleNotFoundError as error:
        print(f"{_NEEDS_LAB} ({error.name} is missing)", file=sys.stderr)
        raise SystemExit(2) from None
    from gqc_lab.errors import BadInput
    from gqc_lab.runs.store import CorruptRun

    try:
        _make_app()(_join_parameters(sys.argv[1:]), prog_name="gqc")
    except (BadInput, CorruptRun, OSError) as error:
        print(f"gqc: {error}", file=sys.stderr)
        # A scheduler that goes away is no mistake of the user's.
        raise SystemExit(1 if isinstance(error, ConnectionError) else 2) from None
