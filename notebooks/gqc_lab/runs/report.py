"""The table and the figure that a batch leaves, both read back from the store."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gqc_lab.errors import BadInput, nearest
from gqc_lab.runs.plan import Batch, show_value
from gqc_lab.stats.numbers import decimals

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from gqc_lab.runs.results import Runs


def batch_results(batch: Batch, runs: Runs) -> pd.DataFrame:
    """Return the rows of ``runs.results`` that are of this batch, in its order."""
    order = {run.id: place for place, run in enumerate(batch.runs)}
    mine = runs.results[runs.results["run"].isin(list(order))]
    return mine.sort_values("run", key=lambda ids: ids.map(order), kind="stable")


def summarize_batch(batch: Batch, results: pd.DataFrame) -> pd.DataFrame:
    """Return mean and 95 % interval over the runs of each group: a row per group and column.

    Several rows of one run in a group count as one, their mean.  There is no interval over runs
    that differ in more than the seed.

    Args:
        results: as :func:`batch_results` returns.
    Returns: the columns that make the groups, then ``column``, ``mean``, ``low``, ``high``, ``n``
        (runs); the interval is Student's t, and NaN for one run.  The mean of a column that the
        report calls geometric is so, and the interval is that of the logarithms.
    Raises: BadInput: the report names a column that no result has, or calls one geometric that has
        a value <= 0.
    """
    import pandas as pd

    from gqc_lab.stats.analysis import mean_over_runs

    frame, by = _grouped(batch, results)
    geometric = _known(results, batch.report.geometric, "geometric")
    points = {
        r.id: show_value([r.parameters[n] for n in r.varied if n != "seed"]) for r in batch.runs
    }
    num_points = frame["run"].map(points).groupby([frame[b] for b in by], sort=False).nunique()
    parts = []
    for column in _columns(batch, results, by):
        frame[column] = pd.to_numeric(results[column], errors="coerce").astype(float)
        try:
            part = mean_over_runs(frame, by, column, is_geometric=column in geometric)
        except ValueError as error:
            raise BadInput(f"report: geometric: {error}") from None
        part.loc[(num_points > 1).to_numpy(), ["low", "high"]] = math.nan
        part.insert(len(by), "column", column)
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _has_numbers(values: pd.Series) -> bool:
    """Whether a column has a number in some run, or nothing in any, as where all diverged."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if is_numeric_dtype(values):
        return not is_bool_dtype(values)
    known = values.dropna()
    return known.empty or any(type(value) in (int, float) for value in known)


def _grouped(batch: Batch, results: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the results and the columns that make their groups.

    Unless the batch file names these: what the grid varies, and the method.  Where that leaves
    several rows of a run in one group, which repeat nothing, all columns of names; and where even
    those do, each row is a group.
    """
    from pandas.api.types import is_numeric_dtype

    by = _known(results, batch.report.by, "by")
    if not by:
        varied = [name for name in batch.runs[0].varied if name != "seed"] if batch.runs else []
        by = list(dict.fromkeys(n for n in (*varied, "method") if n in results.columns))
    columns = [n for n in results.columns if n != "run" and not is_numeric_dtype(results[n])]
    texts = {n for n in columns if not _has_numbers(results[n]) or n in batch.notebook.declared}
    frame = results.copy()
    for name in texts.union(by):  # lists cannot be grouped by
        frame[name] = frame[name].map(show_value)
    if not batch.report.by and frame.duplicated([*by, "run"]).any():
        names = texts.difference(["notebook", *batch.notebook.declared])
        by += [n for n in frame.columns if n in names and n not in by and frame[n].nunique() > 1]
    if not batch.report.by and frame.duplicated([*by, "run"]).any():
        frame["row"] = (frame.groupby("run").cumcount() + 1).map(str)
        by += [*(["run"] if frame["run"].nunique() > 1 else []), "row"]
    return frame, by or ["notebook"]


def _columns(batch: Batch, results: pd.DataFrame, by: list[str]) -> list[str]:
    if batch.report.columns:
        return _known(results, batch.report.columns, "columns")
    own = results.columns.difference([*by, *batch.notebook.declared], sort=False)
    return [c for c in own if _has_numbers(results[c])]


def _known(results: pd.DataFrame, names: tuple[str, ...], key: str) -> list[str]:
    for name in names:
        if name not in results.columns:
            hint = nearest(name, map(str, results.columns))
            raise BadInput(f"report: {key}: no result column {name!r}{hint}")
    return list(names)


def describe_summary(batch: Batch, summary: pd.DataFrame) -> str:
    """Say in words what the numbers of a summary are."""
    if not (summary["n"] > 1).any():
        return "results"
    shown = [name for name in batch.report.geometric if name in set(summary["column"])]
    geometric = f"; geometric mean of {', '.join(shown)}" if shown else ""
    return f"mean and 95 % interval over runs{geometric}"


def tabulate(
    summary: pd.DataFrame,
) -> tuple[list[str], list[str], list[tuple[Any, int, list[str]]]]:
    """Return what makes the groups, the columns, and each group's values, runs and cells."""
    by = list(summary.columns[: list(summary.columns).index("column")])
    columns, rows = list(dict.fromkeys(summary["column"])), []
    for key, group in summary.groupby(by, sort=False, dropna=False):
        cells = {row["column"]: show_interval(row) for _, row in group.iterrows()}
        rows.append((key, int(group["n"].max()), [cells.get(column, "") for column in columns]))
    return by, columns, rows


def make_table(batch: Batch, summary: pd.DataFrame, console: Console) -> Table:
    """Return the summary as a rich table: a row per group, ``mean [low, high]`` in each column.

    Where that is wider than the console, a row per group and column.
    """
    by, columns, groups = tabulate(summary)
    is_repeated = bool((summary["n"] > 1).any())
    heads = [*by, *(["runs"] if is_repeated else [])]
    rows = [([*map(str, key), str(n)][: len(heads)], cells) for key, n, cells in groups]
    title = f"{batch.name}: {describe_summary(batch, summary)}"
    wide = _table(title, heads, columns, [[*counted, *cells] for counted, cells in rows])
    unbounded = console.options.update(max_width=100_000)
    if console.measure(wide, options=unbounded).minimum <= console.width:  # no word is cut
        return wide
    long = [
        [*counted, *pair]
        for counted, cells in rows
        for pair in zip(columns, cells, strict=True)
        if pair[1]
    ]
    return _table(title, [*heads, "column"], ["value"], long)


def _table(title: str, names: list[str], numbers: list[str], rows: list[list[str]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name == "run")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def list_results(rows: list[dict[str, Any]], limit: int) -> Table:
    """Return the first ``limit`` result rows as a table; columns of one value go to its title."""
    names = dict.fromkeys(name for row in rows for name in row)
    first = rows[0] if rows else {}
    varied = {n for n in names if any(row.get(n) != first.get(n) for row in rows)}
    title = " ".join(f"{n}={first.get(n)}" for n in names if n != "run" and n not in varied)
    shown = [name for name in names if name == "run" or name in varied]
    cells = [[show_cell(row.get(name)) for name in shown] for row in rows[:limit]]
    return _table(title, shown, [], cells)


def show_cell(value: Any) -> str:
    """Return a parameter or result in few characters; NaN as none."""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.5g}"
    return show_value(value)


def show_interval(row: Any) -> str:
    """Return ``mean [low, high]`` of a row of the summary."""
    width = row["high"] - row["low"]
    if width == 0 or math.isnan(row["low"]):
        return _number(row["mean"])
    values = row["mean"], row["low"], row["high"]
    # As many digits as the interval's width can tell apart, and one more.
    digits = max(0, 1 - math.floor(math.log10(width))) if math.isfinite(width) else 3
    if 0 < 10 * row["low"] < row["high"]:  # the ends have no digits in common
        shown = [_number(value, 3) for value in values]
    elif digits > 6:  # after zeros, or more of them than are alike
        digits += 1 + math.floor(math.log10(max(map(abs, values))))
        shown = [f"{value:.{digits}g}" for value in values]
    else:
        shown = [decimals(value, digits) for value in values]
    return "{} [{}, {}]".format(*shown)


def _number(value: float, digits: int = 4) -> str:
    if not math.isfinite(value):
        return str(value)
    is_whole = math.isclose(value, round(value), rel_tol=1e-12)  # logarithms cost a last digit
    if abs(value) < 1e9 and (is_whole or abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def find_function(where: str, reference: str) -> Callable[..., Any]:
    """Return the function that ``package.module:function`` names.

    Args:
        where: key of the batch file, for the message.
    Raises: BadInput: there is none of that name.
    """
    try:
        function: Callable[..., Any] = pkgutil.resolve_name(reference)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"{where}: {reference!r}: {error}") from None
    return function


def draw_figure(batch: Batch, results: pd.DataFrame, history: pd.DataFrame) -> Any:
    """Return the figure that the batch file names.  Raises: BadInput: not of these runs."""
    name = batch.report.figure
    try:
        return find_function("report: figure", name)(results, history)
    except ValueError as error:
        raise BadInput(f"report: figure: {name}: {error}") from None
