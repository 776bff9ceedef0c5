"""``gqc freeze``, ``gqc claims`` and ``gqc figures``: from stored runs to the paper."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gqc_lab.cli.shared import Runs
from gqc_lab.errors import BadInput

Folder = Annotated[Path, typer.Option(help="Folder of claims.yaml, results.yaml and results/.")]


def decide_claims(
    action: Annotated[
        str, typer.Argument(help="register: fix rules and runs before they are made.")
    ] = "",
    paper: Folder = Path("paper"),
    is_check: Annotated[
        bool, typer.Option("--check", help="Only compare with the committed verdicts.")
    ] = False,
) -> None:
    """Decide every claim from the committed results; write verdicts and tables."""
    from gqc_lab.claims import commands
    from gqc_lab.claims.render import count, describe_claims

    if action not in {"", "register"}:
        raise BadInput(f"{action!r}: expected register, or nothing to decide the claims")
    if action and is_check:
        raise BadInput("register writes; `gqc claims --check`, without it, compares")
    if action:
        print("\n".join(commands.register_all(paper)))
        return
    if is_check:
        lines = commands.check(paper)
        for line in lines:
            print(f"gqc: {line}", file=sys.stderr)
        print(f"{len(lines)} differences from {paper / commands.VERDICTS}")
        raise typer.Exit(1 if lines else 0)
    verdicts = commands.decide(paper)
    paths = commands.write(verdicts, paper)
    claims = describe_claims(verdicts)
    for claim in claims:
        print(f"{claim['id']}: {claim['verdict']}")
    counted = ", ".join(f"{n} {name}" for name, n in count(claims).items())
    print(f"\n{len(verdicts)} claims: {counted}")
    print("written: " + ", ".join(map(str, paths)))


def freeze_results(
    names: Annotated[
        list[str] | None, typer.Argument(help="Batches of results.yaml; default: all.")
    ] = None,
    runs: Runs = Path("runs"),
    paper: Folder = Path("paper"),
    is_list: Annotated[
        bool, typer.Option("--list", help="Only print the paths of the batch files.")
    ] = False,
) -> None:
    """Copy the runs that the paper rests on from a run store to its committed results."""
    from gqc_lab.claims import commands

    if is_list:
        for name in names or commands.read_plan(paper):
            print(os.path.relpath(commands.batch_path(paper, name)))
        return
    for batch in commands.freeze_all(paper, runs, names or []):
        stale = sum(not run["is_current"] for run in batch.runs)
        note = f", {stale} of an older code" if stale else ""
        print(f"{batch.name}: {len(batch.runs)} runs{note}")
    print("next: gqc claims")


def draw_figures(
    names: Annotated[
        list[str] | None, typer.Argument(help="Of figures.yaml; default: all.")
    ] = None,
    paper: Folder = Path("paper"),
    to: Annotated[
        Path | None, typer.Option(help="Folder; default: build/figures of the paper.")
    ] = None,
) -> None:
    """Draw the paper's figures from the committed results, as PDF, SVG and PNG."""
    from gqc_lab.publish.paper_figures import print_figures

    try:
        for name, files in print_figures(paper, names or [], to):
            print(f"{name}: {', '.join(os.path.relpath(path) for path in files)}")
    except ModuleNotFoundError as error:
        why = f"figures need the paper extra: pip install 'gqc-kit[paper]' ({error})"
        raise BadInput(why) from None
