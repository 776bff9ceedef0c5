"""The table and the figure that a batch leaves, both read back from the store."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqc.lab.runs.parameters import BadInput, nearest
from gqc.lab.runs.plan import Batch
from gqc.lab.runs.progress import show_value

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from gqc.lab.runs.loading import Runs


def batch_results(batch: Batch, runs: Runs) -> pd.DataFrame:
    """The rows of ``runs.results`` that are of this batch, in its order."""
    order = {run.id: place for place, run in enumerate(batch.runs)}
    mine = runs.results[runs.results["run"].isin(list(order))]
    return mine.sort_values("run", key=lambda ids: ids.map(order), kind="stable")


def _groups(batch: Batch, results: pd.DataFrame) -> list[str]:
    if batch.report.by:
        return _known(results, batch.report.by, "by")
    varied = batch.runs[0].varied if batch.runs else ()
    return [name for name in varied if name != "seed" and name in results.columns]


def _columns(batch: Batch, results: pd.DataFrame, by: list[str]) -> list[str]:
    if batch.report.columns:
        return _known(results, batch.report.columns, "columns")
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    own = results.columns.difference([*by, *batch.notebook.declared], sort=False)
    return [c for c in own if is_numeric_dtype(results[c]) and not is_bool_dtype(results[c])]


def _known(results: pd.DataFrame, names: tuple[str, ...], key: str) -> list[str]:
    for name in names:
        if name not in results.columns:
            hint = nearest(name, map(str, results.columns))
            raise BadInput(f"report: {key}: no result column {name!r}{hint}")
    return list(names)


def summarize_batch(batch: Batch, results: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval over the runs of each group: a row per group and column.

    Args:
        results: as :func:`batch_results` returns.
    Returns: the columns of ``report: by``, ``column``, ``mean``, ``low``, ``high``, ``n``; the
        interval is Student's t, and NaN for one run.
    Raises: BadInput: the report names a column that no result has.
    """
    import pandas as pd

    from gqc.lab.analysis import summarize

    by = _groups(batch, results)
    frame = results.copy()
    for name in by:  # lists cannot be grouped by
        frame[name] = frame[name].map(show_value)
    if not by:
        frame["notebook"], by = batch.notebook.name, ["notebook"]
    parts = []
    for column in _columns(batch, results, by):
        part = summarize(frame, by=by, value=column)
        part.insert(len(by), "column", column)
        parts.append(part[[*by, "column", "mean", "low", "high", "n"]])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def make_table(batch: Batch, summary: pd.DataFrame) -> Table:
    """The summary as a rich table: a row per group, ``mean [low, high]`` in each column."""
    from rich.table import Table

    by = list(summary.columns[: list(summary.columns).index("column")])
    columns = list(dict.fromkeys(summary["column"]))
    table = Table(title=f"{batch.name}: mean and 95 % interval over runs", title_justify="left")
    for name in by:
        table.add_column(name)
    table.add_column("runs", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    for key, group in summary.groupby(by, sort=False, dropna=False):
        cells = group.set_index("column")
        shown = [show_interval(cells.loc[c]) if c in cells.index else "" for c in columns]
        table.add_row(*map(str, key), str(int(group["n"].max())), *shown)
    return table


def show_interval(row: Any) -> str:
    """``mean [low, high]`` of a row of the summary."""
    if math.isnan(row["low"]):
        return _number(row["mean"])
    # As many digits as the interval's width can tell apart, and one more.
    width = row["high"] - row["low"]
    if width == 0:
        return _number(row["mean"])
    digits = max(0, min(6, 1 - math.floor(math.log10(width)))) if math.isfinite(width) else 3
    return f"{row['mean']:,.{digits}f} [{row['low']:,.{digits}f}, {row['high']:,.{digits}f}]"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1e5 else f"{value:.4g}"


def find_function(where: str, reference: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names.

    Args:
        where: key of the batch file, for the message.
    Raises: BadInput: there is none of that name.
    """
    module, _, name = reference.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"{where}: {reference!r}: {error}") from None
    return function


def figure_function(batch: Batch) -> Callable[[pd.DataFrame, pd.DataFrame], Any]:
    """What draws the batch's figure.  Raises: BadInput: there is no function of that name."""
    return find_function("report: figure", batch.report.figure)


def write_figure(batch: Batch, results: pd.DataFrame, history: pd.DataFrame, path: Path) -> None:
    """Write the figure that the batch file names as a page that needs no network."""
    from gqc.lab.figures import write_html  # plotly takes a while to import

    figure = figure_function(batch)(results, history)
    write_html(figure, path.with_name(f".{path.name}")).replace(path)
