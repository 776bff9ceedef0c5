"""``gqc runs`` and ``gqc gallery``: what a run store holds."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from gqc_lab.cli.shared import Runs, group, make_console
from gqc_lab.runs.plan import read_batch
from gqc_lab.runs.store import NO_STORE, CorruptRun, Store

stored = group("List, merge and clean up stored runs.")


@stored.command("list")
def list_runs(
    where: Annotated[
        str | None, typer.Option(help="SQL condition, e.g. \"method = 'gnts' AND seed < 3\".")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows.")] = 50,
    runs: Runs = Path("runs"),
) -> None:
    """Show the results of finished runs."""
    from gqc_lab.runs.report import list_results
    from gqc_lab.runs.results import load

    loaded = load(runs, where, skip_damaged=True)
    console = make_console()
    console.print(list_results(loaded.rows, limit))
    console.print(f"{len(loaded.rows)} rows", highlight=False)
    for key, reason in loaded.damaged.items():
        console.print(f"without {key}, which {reason}", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if loaded.damaged else 0)


@stored.command("merge")
def merge_stores(
    source: Annotated[Path, typer.Argument(exists=True, help="A run store, of another machine.")],
    target: Annotated[Path, typer.Argument(help="The run store to copy its runs to.")],
) -> None:
    """Copy finished runs to another store; where both have a run, compare what they measured.

    Exit code 1 if a run differs or is damaged; the target's own runs stay as they are.
    """
    counts: Counter[str] = Counter()
    Store(target).check_writable()
    for key in sorted(Store(source).finished()):
        try:
            outcome = Store(target).adopt(Store(source), key)
        except CorruptRun as error:
            outcome = f"corrupt: {error}"
        except OSError as error:
            if error.errno in NO_STORE:
                raise
            outcome = f"unreadable: {error}"
        kind, _, rest = outcome.partition(":")
        counts[kind] += 1
        if rest:
            print(f"{key} {outcome}")
    print(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "no runs")
    raise typer.Exit(1 if counts.keys() - {"copied", "there already"} else 0)


@stored.command("gc")
def collect_garbage(
    files: Annotated[
        list[Path] | None, typer.Argument(help="All batch files of the notebooks to clean.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, list.")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Delete failed, corrupt and interrupted runs, and finished ones that no FILE asks for."""
    store = Store(runs)
    batches = [read_batch(file) for file in files or []]
    asked = {run.id for batch in batches for run in batch.runs}
    found = store.garbage(asked, {batch.notebook.name for batch in batches})
    for folder in found:
        print(folder)
    if yes:
        store.remove(found)
    print(f"{len(found)} folders {'deleted' if yes else 'to delete; add --yes'}")


def render_gallery(
    file: Annotated[
        Path | None, typer.Argument(help="A batch file (YAML); without it, the whole store.")
    ] = None,
    runs: Runs = Path("runs"),
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("build/gallery"),
) -> None:
    """Render finished runs as HTML pages with an index, to be opened without a network."""
    from gqc_lab.publish.gallery import build_gallery

    batch = read_batch(file) if file else None
    print(f"open {build_gallery(Store(runs), output, batch)}")
