"""List, show, export and clean up what a store holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqc_lab.errors import BadInput
from gqc_lab.runs.plan import Batch
from gqc_lab.runs.results import Runs
from gqc_lab.runs.store import CorruptRun, Store

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

_WRITERS = {".csv": "to_csv", ".parquet": "to_parquet"}


def make_table(runs: Runs, limit: int) -> Table:
    """The first ``limit`` result rows; columns that are the same everywhere go to the title."""
    from rich.table import Table

    results = runs.results
    shown = [c for c in results.columns if c == "run" or results[c].map(str).nunique() > 1]
    constant = [c for c in results.columns if c not in shown and len(results)]
    title = " ".join(f"{name}={results[name].iloc[0]}" for name in constant)
    table = Table(title=title or None, title_justify="left")
    for name in shown:
        table.add_column(name, no_wrap=name == "run")
    for row in results[shown].head(limit).itertuples(index=False):
        table.add_row(*(f"{v:.5g}" if isinstance(v, float) else str(v) for v in row))
    return table


def find_stored(store: Store, start: str) -> str:
    """The id in the store that begins with ``start``.  Raises: BadInput: none, or several."""
    matches = sorted(key for key in store.finished() if start and key.startswith(start))
    if len(matches) != 1:
        raise BadInput(f"{start!r}: {len(matches)} runs of {store.root} begin so")
    return matches[0]


def describe_run(store: Store, key: str) -> dict[str, Any]:
    """A run's record and results.  Raises: BadInput: it is corrupt."""
    import json

    from gqc_lab.runs.store import RESULT

    try:
        record = store.verify(key)
    except CorruptRun as error:
        raise BadInput(f"{key} is corrupt: {error}; run its batch again") from None
    result = json.loads((store.folder(key) / RESULT).read_text(encoding="utf-8"))
    return {**record, "results": result["results"], "info": result["info"]}


def export(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame as .csv or .parquet.  Raises: BadInput: another ending."""
    if path.suffix not in _WRITERS:
        raise BadInput(f"{path}: expected a name that ends in {' or '.join(_WRITERS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    getattr(frame, _WRITERS[path.suffix])(path, index=False)


def garbage(store: Store, batches: Iterable[Batch]) -> list[Path]:
    """Folders that nothing needs: failed, quarantined and interrupted runs and, of the batches'
    notebooks, finished runs that none of the batches asks for any more.

    A run that is being executed is not garbage.
    """
    found = []
    for shelf in ("failed", "quarantine", "partial"):
        folder = store.root / shelf
        if folder.is_dir():
            found += sorted(path for path in folder.iterdir() if path.is_dir())
    found = [path for path in found if path.parent.name != "partial" or _is_idle(store, path.name)]
    batches = list(batches)
    asked = {run.id for batch in batches for run in batch.runs}
    notebooks = {batch.notebook.name for batch in batches}
    for key in sorted(store.finished() - asked if notebooks else ()):
        try:
            if store.record(key)["notebook"] in notebooks:
                found.append(store.folder(key))
        except CorruptRun:
            found.append(store.folder(key))
    return found


def _is_idle(store: Store, key: str) -> bool:
    with store.lock(key) as is_held:
        return is_held


def remove(store: Store, folders: Iterable[Path]) -> None:
    """Delete what :func:`garbage` found, but for runs that have started since."""
    for folder in folders:
        if folder.parent.name == "partial":
            with store.lock(folder.name) as is_held:
                if is_held:
                    shutil.rmtree(folder)
        else:
            shutil.rmtree(folder)
