"""``gqc run``, ``batch`` and ``new``: execute notebooks, plan batches of runs, write new ones."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gqc_lab.cli.shared import File, Runs, group, make_console
from gqc_lab.errors import BadInput
from gqc_lab.runs.batch import Executor, LocalExecutor, default_threads, execute_batch
from gqc_lab.runs.notebook import read_notebook
from gqc_lab.runs.parameters import parse_option, read_mapping
from gqc_lab.runs.plan import Batch, read_batch, shard, single
from gqc_lab.runs.store import Store

if TYPE_CHECKING:
    from rich.console import Console

batches = group("Plan, run and inspect batches of runs.")
new = group("Write files to start from.")
new.callback()(lambda: None)  # keeps a group of one command a group
Cold = Annotated[bool, typer.Option("--cold", help="Start kernels from scratch.")]


def run_notebook(
    notebook: Annotated[Path, typer.Argument(help="An .ipynb notebook.")],
    parameters: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="-p name value, or -p name=value")
    ] = None,
    values: Annotated[
        list[Path] | None, typer.Option("--file", "-f", help="YAML file of parameters.")
    ] = None,
    runs: Runs = Path("runs"),
    cold: Cold = False,
) -> None:
    """Run one notebook with parameters; a finished run is not repeated."""
    read = read_notebook(notebook)
    given: dict[str, Any] = {}
    for path in values or []:
        given |= read_mapping(path)
    for each in parameters or []:
        name, equals, text = each.partition("=")
        if not equals:
            raise BadInput(f"-p {each}: expected a name and a value")
        given[name] = parse_option(read.declared, name, text)
    raise typer.Exit(_execute(single(read, given), runs, 1, cold))


@batches.command("run")
def run_batch(
    file: File,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Runs at a time; default 1, or the cluster."),
    ] = None,
    runs: Runs = Path("runs"),
    scheduler: Annotated[
        str | None,
        typer.Option(help="Run on Dask workers: tcp://host:port, or local to start some here."),
    ] = None,
    retry: Annotated[int, typer.Option(min=0, help="Further tries of a run that was killed.")] = 1,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at a failure.")] = False,
    cold: Cold = False,
    share: Annotated[
        str, typer.Option("--shard", help="Only the i-th of n shares, as in a job array: i/n.")
    ] = "1/1",
) -> None:
    """Execute what is not finished yet, then print the results, those of other shares too."""
    batch = read_batch(file)
    mine = shard(batch, share)
    raise typer.Exit(_execute(mine, runs, jobs, cold, retry, fail_fast, scheduler, batch))


@batches.command("plan")
def plan_batch(
    file: File,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time.")] = 1,
    runs: Runs = Path("runs"),
    explain: Annotated[
        str | None, typer.Option(help="Say why the run of this id (or its start) is to run.")
    ] = None,
) -> None:
    """Show the runs, what is finished and the time that is left; run nothing."""
    from gqc_lab.runs import overview

    batch, store = read_batch(file), Store(runs)
    if explain is None:
        overview.print_plan(batch, store, jobs, make_console())
    else:
        print("\n".join(overview.explain(overview.find_run(batch, explain), batch, store)))


@batches.command("status")
def batch_status(
    file: File,
    runs: Runs = Path("runs"),
    is_watched: Annotated[
        bool, typer.Option("--watch", help="Follow running ones from any terminal.")
    ] = False,
) -> None:
    """Count finished, failed, died, interrupted and waiting runs; exit code 1 if one failed."""
    from gqc_lab.runs.overview import print_status

    code = print_status(read_batch(file), Store(runs), make_console(), is_watched=is_watched)
    raise typer.Exit(code)


@new.command("experiment")
def new_experiment(
    name: Annotated[str, typer.Argument(help="Such as batch_noise.")],
    question: Annotated[str, typer.Option(help="Title of the notebook.")] = "",
    to: Annotated[
        Path, typer.Option(help="A checkout of the kit, or a folder for all files.")
    ] = Path(),
) -> None:
    """Write an experiment that runs as it is: module, notebook pair, batch."""
    from gqc_lab.publish.scaffold import write_experiment

    made = write_experiment(name, question, to)
    for path in made.paths:
        print(f"written: {path}")
    print(f"\nto have it decided, add to claims.yaml:\n\n{made.claim}")
    print(f"next: gqc run {made.notebook}")
    print(f"then: gqc batch run {made.batch} --jobs 2")


def _execute(
    batch: Batch,
    runs: Path,
    jobs: int | None,
    is_cold: bool,
    retry: int = 1,
    is_fail_fast: bool = False,
    scheduler: str | None = None,
    whole: Batch | None = None,
) -> int:
    """Execute and report, on all of the ``whole`` that is finished; returns the exit code."""
    from gqc_lab.runs.overview import BatchProgress
    from gqc_lab.runs.report import find_function

    if batch.report.figure:
        find_function("report: figure", batch.report.figure)  # refused before anything runs
    console, store = make_console(), Store(runs)
    progress = BatchProgress(batch, console)
    with progress.bars:
        executor = _executor(scheduler, batch, store, progress.note, jobs, not is_cold)
        with closing(executor):
            outcomes = execute_batch(
                batch, store, progress,
                jobs=jobs, retry=retry, is_fail_fast=is_fail_fast, executor=executor,
            )  # fmt: skip
    counts = [f"{outcomes.count(s)} {s}" for s in dict.fromkeys(outcomes.statuses.values())]
    runs_of_it = "1 run" if len(batch.runs) == 1 else f"{len(batch.runs)} runs"
    console.print(f"{batch.name}: {runs_of_it}: {', '.join(counts)}", highlight=False)
    _report(whole or batch, store, console)
    if outcomes.is_interrupted:
        console.print("interrupted; repeat the command to continue")
        return 130
    return 1 if outcomes.errors else 0


def _executor(
    scheduler: str | None,
    batch: Batch,
    store: Store,
    note: Callable[[str], None],
    jobs: int | None,
    is_forked: bool,
) -> Executor:
    """Return a Dask cluster, or this machine without ``scheduler``."""
    if scheduler is None:
        wanted = {name.lower(): count for name, count in batch.resources.items()}
        gpus = wanted.pop("gpu", 0.0)
        if wanted:
            note("resources: only Dask workers have others than gpu; they do not count")
        local = LocalExecutor(1, is_forked=is_forked, gpus=gpus)
        local.threads = default_threads(batch, local.capacity(jobs))
        return local
    try:
        from gqc_lab.runs.cluster import connect
    except ModuleNotFoundError as error:
        raise BadInput(
            f"--scheduler needs the dask extra, pip install 'gqc-kit[dask]': no {error.name}"
        ) from None
    return connect(scheduler, batch, store, note, jobs, is_forked=is_forked)


def _report(batch: Batch, store: Store, console: "Console") -> None:
    """Print the table of what is finished, and write the figure that the batch file names."""
    from gqc_lab.runs.report import batch_results, draw_figure, make_table, summarize_batch
    from gqc_lab.runs.results import load

    if not store.root.is_dir():
        return
    loaded = load(store.root, ids=[run.id for run in batch.runs], skip_damaged=True)
    results = batch_results(batch, loaded)
    summary = summarize_batch(batch, results) if len(results) else results
    if len(summary):
        console.print(make_table(batch, summary, console))
    if batch.report.figure and len(results):
        from gqc_lab.figures import write_html

        figure = draw_figure(batch, results, loaded.history)
        path = write_html(figure, store.root / f"{batch.name}.html")
        console.print(f"figure: {path}", highlight=False, soft_wrap=True)
