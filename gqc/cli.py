"""The ``gqc`` command.  Exit codes: 0 all good, 1 a run failed, 2 bad arguments, 130 interrupted.

Only Typer is imported at the start; a command imports what it needs.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from gqc.lab.runs.execute import Outcomes
    from gqc.lab.runs.loading import Runs as LoadedRuns
    from gqc.lab.runs.plan import Batch
    from gqc.lab.runs.progress import BatchProgress
    from gqc.lab.runs.store import Store

_NEEDS_LAB = "gqc: the command line needs the lab extra: pip install 'gqc-kit[lab]'"


def _fail(message: object) -> NoReturn:
    print(f"gqc: {message}", file=sys.stderr)
    raise SystemExit(2)


def _console() -> "Console":
    from rich.console import Console

    # A log file has no width of its own; 80 columns would cut tables.
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def _execute(
    batch: "Batch",
    runs: Path,
    jobs: int | None,
    is_cold: bool,
    retry: int,
    is_fail_fast: bool,
    scheduler: str | None = None,
) -> int:
    """Execute and report; returns the exit code."""
    from gqc.lab.runs.parameters import BadInput
    from gqc.lab.runs.progress import BatchProgress
    from gqc.lab.runs.report import figure_function
    from gqc.lab.runs.store import Store

    if runs.exists() and not runs.is_dir():
        _fail(f"--runs {runs}: expected a folder")
    try:
        if batch.report.figure:
            figure_function(batch)
    except BadInput as error:
        _fail(error)
    console, store = _console(), Store(runs)
    with BatchProgress(batch, console) as progress:
        try:
            outcomes = _execute_on(
                scheduler, batch, store, progress, jobs=jobs, retry=retry,
                is_fail_fast=is_fail_fast, is_warm=not is_cold,
            )  # fmt: skip
        except BadInput as error:
            _fail(error)
        except ConnectionError as error:
            print(f"gqc: {error}", file=sys.stderr)
            return 1
    counts = [f"{outcomes.count(s)} {s}" for s in dict.fromkeys(outcomes.statuses.values())]
    console.print(f"{batch.name}: {len(batch.runs)} runs: {', '.join(counts)}", highlight=False)
    try:
        _report(batch, store, console)
    except BadInput as error:  # the runs are stored; only the report is not as asked for
        _fail(error)
    if outcomes.is_interrupted:
        console.print("interrupted; the same command goes on from here")
        return 130
    return 1 if outcomes.errors else 0


def _execute_on(
    scheduler: str | None, batch: "Batch", store: "Store", progress: "BatchProgress", **options: Any
) -> "Outcomes":
    """Execute on a Dask cluster, or on this machine without ``scheduler``."""
    from contextlib import closing

    from gqc.lab.runs.execute import execute_batch
    from gqc.lab.runs.parameters import BadInput

    if scheduler is None:
        if batch.resources:
            progress.note("resources: only Dask workers have them; here --jobs is the only limit")
        return execute_batch(batch, store, progress, **options)
    try:
        from gqc.lab.runs.cluster import connect
    except ModuleNotFoundError as error:
        raise BadInput(
            f"--scheduler needs the dask extra, pip install 'gqc-kit[dask]': no {error.name}"
        ) from None
    with closing(connect(scheduler, batch, store, progress.note, options["jobs"])) as worker:
        return execute_batch(batch, store, progress, worker=worker, **options)


def _report(batch: "Batch", store: "Store", console: "Console") -> None:
    """Print the table of what is finished, and write the figure that the batch file names."""
    from gqc.lab.runs.loading import load
    from gqc.lab.runs.report import batch_results, make_table, summarize_batch, write_figure

    root = store.root
    if not root.is_dir():
        return
    loaded = load(root, ids=[run.id for run in batch.runs])
    results = batch_results(batch, loaded)
    summary = summarize_batch(batch, results) if len(results) else results
    if len(summary):
        console.print(make_table(batch, summary))
    if batch.report.figure and len(results):
        path = root / f"{batch.name}.html"
        write_figure(batch, results, loaded.history, path)
        console.print(f"figure: {path}", highlight=False, soft_wrap=True)


def _make_app() -> "typer.Typer":
    import typer

    options: dict[str, Any] = {
        "no_args_is_help": True,
        "add_completion": False,
        "pretty_exceptions_enable": False,
    }
    app = typer.Typer(help="Run experiment notebooks, once or as resumable batches.", **options)
    batches = typer.Typer(help="Plan, run and inspect batches of runs.", **options)
    stored = typer.Typer(help="List, show, export and clean up stored runs.", **options)
    app.add_typer(batches, name="batch")
    app.add_typer(stored, name="runs")
    _add_run(app)
    _add_batch_commands(batches)
    _add_runs_commands(stored)
    _add_gallery(app)
    _add_paper_commands(app)
    return app


def _add_run(app: "typer.Typer") -> None:
    import typer

    @app.command("run")
    def run_notebook(
        notebook: Annotated[Path, typer.Argument(help="An .ipynb notebook.")],
        parameters: Annotated[
            list[str] | None,
            typer.Option("--parameter", "-p", help="-p name value, or -p name=value"),
        ] = None,
        presets: Annotated[
            list[Path] | None, typer.Option("--preset", "-f", help="YAML file of parameters.")
        ] = None,
        runs: Annotated[Path, typer.Option(help="Folder of the run store.")] = Path("runs"),
        cold: Annotated[bool, typer.Option(help="Start the kernel from scratch.")] = False,
    ) -> None:
        """Run one notebook with parameters; a finished run is not repeated."""
        from gqc.lab.runs.notebook import read_notebook
        from gqc.lab.runs.parameters import BadInput, parse_option
        from gqc.lab.runs.plan import read_presets, single

        try:
            read = read_notebook(notebook)
            given = read_presets(presets or [], read)
            for each in parameters or []:
                name, equals, text = each.partition("=")
                if not equals:
                    raise BadInput(f"-p {each}: expected a name and a value")
                given[name] = parse_option(read.declared, name, text)
            batch = single(read, given)
        except BadInput as error:
            _fail(error)
        raise typer.Exit(_execute(batch, runs, 1, cold, retry=1, is_fail_fast=False))


def _add_batch_commands(batches: "typer.Typer") -> None:
    import typer

    File = Annotated[Path, typer.Argument(help="A batch file (YAML).")]
    Runs = Annotated[Path, typer.Option("--runs", help="Folder of the run store.")]
    Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time.")]

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
        retry: Annotated[
            int, typer.Option(min=0, help="Further tries of a run that was killed.")
        ] = 1,
        fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at a failure.")] = False,
        cold: Annotated[bool, typer.Option("--cold", help="Start kernels from scratch.")] = False,
    ) -> None:
        """Execute what is not finished yet, then print the results."""
        raise typer.Exit(_execute(_read(file), runs, jobs, cold, retry, fail_fast, scheduler))

    @batches.command("plan")
    def plan_batch(
        file: File,
        jobs: Jobs = 1,
        runs: Runs = Path("runs"),
        explain: Annotated[
            str | None, typer.Option(help="Say why the run of this id (or its start) is to run.")
        ] = None,
    ) -> None:
        """Show the runs, what is finished and the time that is left; run nothing."""
        from gqc.lab.runs.overview import print_plan
        from gqc.lab.runs.parameters import BadInput
        from gqc.lab.runs.store import Store

        batch = _read(file)
        if explain is None:
            try:
                print_plan(batch, Store(runs), jobs, _console())
            except BadInput as error:
                _fail(error)
        else:
            _explain(batch, Store(runs), explain)

    @batches.command("status")
    def batch_status(file: File, runs: Runs = Path("runs")) -> None:
        """Count finished, failed, interrupted and waiting runs; exit code 1 if one failed."""
        from gqc.lab.runs.overview import print_status
        from gqc.lab.runs.store import Store

        raise typer.Exit(print_status(_read(file), Store(runs), _console()))


def _explain(batch: "Batch", store: "Store", start: str) -> None:
    from gqc.lab.runs.explain import explain, find_run
    from gqc.lab.runs.parameters import BadInput

    try:
        run = find_run(batch, start)
    except BadInput as error:
        _fail(error)
    print("\n".join(explain(run, batch, store)))


def _add_paper_commands(app: "typer.Typer") -> None:
    import typer

    folder = typer.Option(help="Folder of claims.yaml, results.yaml and results/.")

    @app.command("claims")
    def decide_claims(
        paper: Annotated[Path, folder] = Path("paper"),
        is_check: Annotated[
            bool, typer.Option("--check", help="Only compare with the committed verdicts.")
        ] = False,
    ) -> None:
        """Decide every claim from the committed results; write verdicts and tables."""
        from gqc.lab.claims import commands, tables
        from gqc.lab.runs.parameters import BadInput
        from gqc.lab.runs.store import CorruptRun

        console = _console()
        try:
            if is_check:
                lines = commands.check(paper)
                for line in lines:
                    print(f"gqc: {line}", file=sys.stderr)
                console.print(f"{len(lines)} differences from {paper / commands.VERDICTS}")
                raise typer.Exit(1 if lines else 0)
            verdicts = commands.decide(paper)
            paths = commands.write(verdicts, paper)
        except (BadInput, CorruptRun) as error:
            _fail(error)
        console.print(commands.overview(verdicts))
        counted = ", ".join(f"{n} {name}" for name, n in tables.count(verdicts).items())
        console.print(f"\n{len(verdicts)} claims: {counted}", highlight=False)
        console.print("written: " + ", ".join(map(str, paths)), highlight=False)

    @app.command("freeze")
    def freeze_results(
        names: Annotated[
            list[str] | None, typer.Argument(help="Batches of results.yaml; default: all.")
        ] = None,
        runs: Annotated[Path, typer.Option(help="Folder of the run store.")] = Path("runs"),
        paper: Annotated[Path, folder] = Path("paper"),
        is_list: Annotated[
            bool, typer.Option("--list", help="Only print the paths of the batch files.")
        ] = False,
    ) -> None:
        """Copy the runs that the paper rests on from a run store to its committed results."""
        from gqc.lab.claims import commands
        from gqc.lab.runs.parameters import BadInput
        from gqc.lab.runs.store import CorruptRun

        try:
            if is_list:
                for name in names or commands.read_plan(paper):
                    print(os.path.relpath(commands.batch_path(paper, name)))
                return
            frozen = commands.freeze_all(paper, runs, names or [])
        except (BadInput, CorruptRun, FileNotFoundError) as error:
            _fail(error)
        console = _console()
        for batch in frozen:
            stale = sum(not run["is_current"] for run in batch.runs)
            note = f", {stale} of an older code" if stale else ""
            console.print(f"{batch.name}: {len(batch.runs)} runs{note}", highlight=False)
        console.print("next: gqc claims")

    @app.command("figures")
    def draw_figures(
        names: Annotated[
            list[str] | None, typer.Argument(help="Of paper/figures, without .py; default: all.")
        ] = None,
        paper: Annotated[Path, folder] = Path("paper"),
        to: Annotated[
            Path | None, typer.Option(help="Folder; default: build/figures of the paper.")
        ] = None,
    ) -> None:
        """Draw the paper's figures from the committed results, as PDF, SVG and PNG."""
        from gqc.lab.printing import print_figures
        from gqc.lab.runs.parameters import BadInput
        from gqc.lab.runs.store import CorruptRun

        try:
            for name, files in print_figures(paper, names or [], to):
                print(f"{name}: {', '.join(os.path.relpath(path) for path in files)}")
        except ModuleNotFoundError as error:
            _fail(f"figures need the paper extra: pip install 'gqc-kit[paper]' ({error})")
        except (BadInput, CorruptRun) as error:
            _fail(error)


def _add_gallery(app: "typer.Typer") -> None:
    import typer

    @app.command("gallery")
    def render_gallery(
        file: Annotated[
            Path | None, typer.Argument(help="A batch file (YAML); without it, the whole store.")
        ] = None,
        runs: Annotated[Path, typer.Option(help="Folder of the run store.")] = Path("runs"),
        output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("build/gallery"),
    ) -> None:
        """Render finished runs as HTML pages with an index, to be opened without a network."""
        from gqc.lab.gallery import build_gallery
        from gqc.lab.runs.parameters import BadInput
        from gqc.lab.runs.store import Store

        batch = _read(file) if file else None
        try:
            print(f"open {build_gallery(Store(runs), output, batch)}")
        except BadInput as error:
            _fail(error)


def _add_runs_commands(stored: "typer.Typer") -> None:
    import typer

    Runs = Annotated[Path, typer.Option("--runs", help="Folder of the run store.")]
    Where = Annotated[
        str | None, typer.Option(help="SQL condition, e.g. \"method = 'gnts' AND seed < 3\".")
    ]

    @stored.command("list")
    def list_runs(
        where: Where = None,
        limit: Annotated[int, typer.Option(min=1, help="Rows.")] = 50,
        runs: Runs = Path("runs"),
    ) -> None:
        """Show the results of finished runs."""
        from gqc.lab.runs.catalog import make_table

        loaded = _load(runs, where)
        console = _console()
        console.print(make_table(loaded, limit))
        console.print(f"{len(loaded.results)} rows", highlight=False)

    @stored.command("show")
    def show_run(
        key: Annotated[str, typer.Argument(help="The run's id, or its start.")],
        runs: Runs = Path("runs"),
    ) -> None:
        """Print all that is known of a run, as JSON."""
        import json

        from gqc.lab.runs.catalog import describe_run, find_stored
        from gqc.lab.runs.parameters import BadInput
        from gqc.lab.runs.store import Store

        try:
            print(json.dumps(describe_run(Store(runs), find_stored(Store(runs), key)), indent=1))
        except BadInput as error:
            _fail(error)

    @stored.command("export")
    def export_runs(
        path: Annotated[Path, typer.Argument(help="A .csv or .parquet file to write.")],
        history: Annotated[
            bool, typer.Option("--history", help="Export the records, not the results.")
        ] = False,
        where: Where = None,
        runs: Runs = Path("runs"),
    ) -> None:
        """Write the results, or the histories, of finished runs as one table."""
        from gqc.lab.runs.catalog import export
        from gqc.lab.runs.parameters import BadInput

        loaded = _load(runs, where)
        try:
            export(loaded.history if history else loaded.results, path)
        except BadInput as error:
            _fail(error)

    @stored.command("gc")
    def collect_garbage(
        files: Annotated[
            list[Path] | None, typer.Argument(help="All batch files of the notebooks to clean.")
        ] = None,
        yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, list.")] = False,
        runs: Runs = Path("runs"),
    ) -> None:
        """Delete failed, corrupt and interrupted runs, and finished ones that no FILE asks for."""
        from gqc.lab.runs.catalog import garbage, remove
        from gqc.lab.runs.store import Store

        store = Store(runs)
        found = garbage(store, [_read(file) for file in files or []])
        for folder in found:
            print(folder)
        if yes:
            remove(store, found)
        print(f"{len(found)} folders {'deleted' if yes else 'to delete; add --yes'}")


def _load(runs: Path, where: str | None) -> "LoadedRuns":
    from duckdb import Error

    from gqc.lab.runs.loading import load
    from gqc.lab.runs.store import CorruptRun

    try:
        return load(runs, where)
    except (FileNotFoundError, CorruptRun) as error:
        _fail(error)
    except Error as error:
        _fail(f"--where {where!r}: {str(error).splitlines()[0]}")


def _read(file: Path) -> "Batch":
    from gqc.lab.runs.parameters import BadInput
    from gqc.lab.runs.plan import read_batch

    try:
        return read_batch(file)
    except BadInput as error:
        _fail(error)


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
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
        import yaml  # noqa: F401
    except ModuleNotFoundError as error:
        print(f"{_NEEDS_LAB} ({error.name} is missing)", file=sys.stderr)
        raise SystemExit(2) from None
    _make_app()(_join_parameters(sys.argv[1:]), prog_name="gqc")
