"""Read a store back as tidy frames."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqc_lab.runs.store import HISTORY, RECORD, RESULT, CorruptRun, Store, file_hash, seal

if TYPE_CHECKING:
    import pandas as pd


class Runs:
    """Finished runs of a store.

    ``results`` has a row per saved result: run, notebook, the notebook's parameters, and the
    result's own columns, which win where names meet.  ``history`` has the runs' records one
    below the other, with the column ``run``; it is read when it is first asked for.
    """

    def __init__(self, store: Store, results: pd.DataFrame, files: dict[str, dict[str, str]]):
        self._store, self._files = store, files
        self.results = results

    def __repr__(self) -> str:
        return f"Runs({self.results['run'].nunique()} runs of {self._store.root})"

    @cached_property
    def history(self) -> pd.DataFrame:
        """Raises: CorruptRun: a file does not match its checksum."""
        import duckdb
        import pandas as pd

        wanted = [run for run in self.results["run"].unique() if HISTORY in self._files[run]]
        paths = {str(self._store.folder(run) / HISTORY): run for run in wanted}
        for path, run in paths.items():
            if not Path(path).is_file() or file_hash(Path(path)) != self._files[run][HISTORY]:
                raise CorruptRun(f"{path}: does not match its checksum; run its batch again")
        if not paths:
            return pd.DataFrame({"run": pd.Series(dtype=object)})
        with duckdb.connect() as connection:
            frame = connection.execute(
                "SELECT * FROM read_parquet(?, union_by_name=true, filename='run')", [list(paths)]
            ).df()
        frame["run"] = frame["run"].map(paths)
        return frame[["run", *(name for name in frame.columns if name != "run")]]


def load(
    store: Path | str = "runs",
    where: str | Mapping[str, Any] | None = None,
    *,
    ids: Collection[str] | None = None,
) -> Runs:
    """The finished runs of ``store``.

    Args:
        store: the folder given to ``gqc batch run --runs``.
        where: which results: a mapping such as {"method": "gnts", "seed": [0, 1]}, or an SQL
            condition on the columns of ``results`` such as "method = 'gnts' AND seed < 3".
        ids: only these runs are looked at, so that damage elsewhere in the store does not matter.
    Raises:
        FileNotFoundError: there is no such folder.
        KeyError: ``where`` names a column that no result has.
        CorruptRun: a run is not what was written; running its batch again mends it.
    """
    import pandas as pd

    place = Store(store)
    if not place.root.is_dir():
        raise FileNotFoundError(f"{store}: no such run store; make one with `gqc batch run`")
    rows, files = _read(place, ids)
    results = pd.DataFrame(rows)
    if results.empty:
        results = pd.DataFrame({"run": pd.Series(dtype=object)})
    return Runs(place, _select(results, where), files)


def _contents(store: Store, name: str) -> list[tuple[str, bytes, str]]:
    """Run, content and sha256 of the file ``name`` of every run."""
    import duckdb

    query = (
        "SELECT parse_filename(parse_dirpath(filename)), content, sha256(content) "
        "FROM read_blob(?) ORDER BY 1"
    )
    with duckdb.connect() as connection:
        try:
            return connection.execute(query, [str(store.root / "[0-9a-f]*" / name)]).fetchall()
        except duckdb.IOException:  # no such file at all
            return []


def read_records(store: Store) -> dict[str, dict[str, Any]]:
    """By run, each run.json that is whole; a corrupt one is left to who runs the batch again."""
    records = {}
    for run, content, _ in _contents(store, RECORD):
        try:
            records[run] = _sealed(run, content)
        except CorruptRun:
            continue
    return records


def _read(
    store: Store, ids: Collection[str] | None
) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """Result rows and, by run, the files' checksums; both files of a run are verified."""
    # Listed first: a run that is published meanwhile is not missed, it is not looked for.
    wanted = store.finished() if ids is None else store.finished() & set(ids)
    records = {run: content for run, content, _ in _contents(store, RECORD)}
    results = {run: (content, sha) for run, content, sha in _contents(store, RESULT)}
    rows: list[dict[str, Any]] = []
    files: dict[str, dict[str, str]] = {}
    for run in sorted(wanted):
        files[run] = _sealed(run, records.get(run, b""))["files"]
        content, sha = results.get(run, (b"", ""))
        if sha != files[run].get(RESULT):
            raise CorruptRun(f"{run}/{RESULT}: does not match its checksum; run its batch again")
        saved = json.loads(content)
        common = {"run": run, "notebook": saved["notebook"], **saved["parameters"]}
        rows += [{**common, **row} for row in saved["results"] or [{}]]
    return rows, files


def _sealed(run: str, content: bytes) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(content)
    except ValueError:
        record = {}
    if not record or seal(record)["seal"] != record.get("seal"):
        raise CorruptRun(f"{run}/{RECORD}: does not match its checksum; run its batch again")
    return record


def _select(results: pd.DataFrame, where: str | Mapping[str, Any] | None) -> pd.DataFrame:
    if where is None:
        return results
    if isinstance(where, str):
        import duckdb

        with duckdb.connect() as connection:
            connection.register("results", results.assign(row_of_frame=range(len(results))))
            rows = connection.execute(f"SELECT row_of_frame FROM results WHERE {where}").fetchall()
        return results.iloc[sorted(row for (row,) in rows)].reset_index(drop=True)
    for name, value in where.items():
        if name not in results.columns:
            raise KeyError(f"where: {name!r}: expected one of {', '.join(results.columns)}")
        column = results[name]
        results = results[column.isin(value) if isinstance(value, list) else column == value]
    return results.reset_index(drop=True)
