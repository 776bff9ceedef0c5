"""The ``gqc`` command.  Exit codes: 0 all good, 1 a run failed, 2 bad arguments, 130 interrupted.

Only Typer is imported at the start; a command imports what it needs.
"""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

_NEEDS_LAB = "gqc: the command line needs the lab extra: pip install 'gqc-kit[lab]'"


def _make_app() -> "typer.Typer":
    from gqc_lab.cli.batches import batches, new, run_notebook
    from gqc_lab.cli.paper import decide_claims, draw_figures, freeze_results
    from gqc_lab.cli.shared import group
    from gqc_lab.cli.stored import render_gallery, stored

    app = group("Run experiment notebooks, once or as resumable batches.")
    for name, part in (("batch", batches), ("runs", stored), ("new", new)):
        app.add_typer(part, name=name)
    app.command("run")(run_notebook)
    app.command("gallery")(render_gallery)
    app.command("claims")(decide_claims)
    app.command("freeze")(freeze_results)
    app.command("figures")(draw_figures)
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
