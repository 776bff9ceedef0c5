"""The numbers of runs: a notebook saves them in its last cell, tidy frames bring them back."""

import glob
import os
import sys
import sysconfig
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqc_lab.errors import BadInput
from gqc_lab.runs.index import describe_damage, summarize
from gqc_lab.runs.store import HISTORY, MODULES, RESULT, CorruptRun, Store, write_json

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def current_run_dir() -> Path | None:
    """Return the folder of the run that this process executes, or None outside a batch."""
    folder = os.environ.get("GQC_RUN_DIR")
    return Path(folder) if folder else None


def save(
    history: "pd.DataFrame | None",
    results: "pd.DataFrame | list[dict[str, Any]] | dict[str, Any]",
    **info: Any,
) -> "pd.DataFrame":
    """Save a run's numbers; outside a batch, only return them as a frame.

    Args:
        history: a tidy frame, one row per record, or None.
        results: one row per thing that was measured, e.g. {"method": "gnts", "val_loss": 1.9}.
        info: plain values for the record, such as ``data_hash``.
    Returns: ``results`` as a frame, to show.
    Raises:
        TypeError: a result or info value is not a number, text, flag, None or list of such.
        ValueError: a column is called ``run``, as the store's own is.
    """
    import pandas as pd

    frame = pd.DataFrame([results] if isinstance(results, dict) else results)
    if "run" in {*frame.columns, *([] if history is None else history.columns)}:
        raise ValueError("column 'run': that is the store's name for the run's id; choose another")
    folder = current_run_dir()
    if folder is None:
        return frame
    content = {
        "results": [_plain_row(row) for row in frame.to_dict(orient="records")],
        "info": _plain_row(info),
    }
    if history is not None:
        temporary = folder / f".{HISTORY}"
        history.to_parquet(temporary, index=False)
        os.replace(temporary, folder / HISTORY)
    write_json(folder / RESULT, content)
    write_json(folder / MODULES, _loaded_modules())
    return frame


def _loaded_modules() -> dict[str, str]:
    """Return the files of all loaded modules that are not of an installed library, by name."""
    libraries = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib"))
    found = {}
    for name, module in list(sys.modules.items()):
        path = str(getattr(module, "__file__", None))  # no Path: there are thousands
        is_packaged = "/site-packages/" in path or "/dist-packages/" in path
        if path.endswith(".py") and not is_packaged and not path.startswith(libraries):
            found[name] = str(Path(path).resolve())
    return found


def _plain_row(row: dict[Any, Any]) -> dict[str, Any]:
    return {str(name): _plain(str(name), value) for name, value in row.items()}


def _plain(name: str, value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()  # a numpy scalar or a tensor of one element
    if isinstance(value, (list, tuple)):
        return [_plain(name, element) for element in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{name}={value!r}: expected a number, text, flag, None or list of them, "
        f"got {type(value).__name__}"
    )


class Runs:
    """Finished runs of a store.

    ``results`` has a row per saved result: run, notebook, the notebook's parameters, and the
    result's own columns, which win where names meet; ``rows`` has the same as dicts.  ``history``
    has the runs' records one below the other, with the column ``run``; it is read when it is first
    asked for.  ``damaged`` says what is wrong with each run that was left out, by id.
    """

    def __init__(self, store: Store, rows: list[Row], names: list[str], damaged: dict[str, str]):
        self._store, self._names = store, names
        self.rows, self.damaged = rows, damaged

    def __repr__(self) -> str:
        return f"Runs({len(self._ids)} runs of {self._store.root})"

    @property
    def _ids(self) -> list[str]:
        return list(dict.fromkeys(row["run"] for row in self.rows))

    @cached_property
    def results(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame(self.rows, columns=self._names)

    @cached_property
    def history(self) -> "pd.DataFrame":
        """Raises: CorruptRun: a file does not match its checksum, or cannot be read."""
        import duckdb
        import pandas as pd

        paths = {}
        for run in self._ids:
            try:
                record = self._store.record(run)
                if HISTORY in record["files"]:
                    self._store.read(run, HISTORY, record)
                    paths[str(self._store.folder(run) / HISTORY)] = run
            except (CorruptRun, OSError) as error:
                others = f"load the others, where=\"run != '{run}'\""
                raise CorruptRun(f"{run} {describe_damage(error)}, or {others}") from None
        if not paths:
            return pd.DataFrame({"run": pd.Series(dtype=object)})
        # Of a folder called lr=0.1 DuckDB would make a column.
        source = "read_parquet(?, union_by_name=true, hive_partitioning=false, filename='run')"
        with duckdb.connect() as connection:
            frame = connection.execute(f"FROM {source}", [[*map(glob.escape, paths)]]).df()
        frame.insert(0, "run", frame.pop("run").map(paths))
        return frame


def load(
    store: Path | str = "runs",
    where: str | Mapping[str, Any] | None = None,
    *,
    ids: Collection[str] | None = None,
    skip_damaged: bool = False,
) -> Runs:
    """Return the finished runs of ``store``.

    Args:
        store: the folder given to ``gqc batch run --runs``.
        where: which results: a mapping such as {"method": "gnts", "seed": [0, 1]}, or an SQL
            condition on the columns of ``results`` such as "method = 'gnts' AND seed < 3".
        ids: only these runs are looked at, so that damage elsewhere in the store does not matter.
        skip_damaged: leave out runs that are not what was written or cannot be read, and say in
            ``damaged`` of what is returned which they are.
    Raises:
        FileNotFoundError: there is no such folder.
        KeyError: ``where`` names a column that no result has.
        BadInput: ``where`` is no SQL condition on the columns, or wants to read or write files.
        CorruptRun: a run is not what was written, which running its batch again mends, or cannot be
            read; without ``skip_damaged``.
    """
    place = Store(store)
    if not place.root.is_dir():
        raise FileNotFoundError(f"{store}: no such run store; make one with `gqc batch run`")
    wanted = place.finished() if ids is None else place.finished() & set(ids)
    rows: list[Row] = []
    damaged = {}
    for key, saved in summarize(place, wanted).items():
        if isinstance(saved, Exception):
            damaged[key] = describe_damage(saved)
        else:
            common = {"run": key, "notebook": saved.notebook, **saved.parameters}
            rows += [{**common, **row, "run": key} for row in saved.rows or [{}]]
    if damaged and not skip_damaged:
        key, reason = next(iter(damaged.items()))
        more = f" ({len(damaged) - 1} more are damaged)" if len(damaged) > 1 else ""
        raise CorruptRun(f"{key} {reason}{more}, or read the others with skip_damaged=True")
    names = list(dict.fromkeys(["run", *(name for row in rows for name in row)]))
    return Runs(place, _select(rows, names, where), names, damaged)


def _select(rows: list[Row], names: list[str], where: str | Mapping[str, Any] | None) -> list[Row]:
    if isinstance(where, str):
        import duckdb
        import pandas as pd

        frame = pd.DataFrame(rows, columns=names).assign(row_of_frame=range(len(rows)))
        # A condition may neither read nor write files.
        with duckdb.connect(config={"enable_external_access": False}) as connection:
            connection.register("results", frame)
            query = f"SELECT row_of_frame FROM results WHERE {where}"
            try:
                found = connection.execute(query).fetchall()
            except duckdb.Error as error:
                raise BadInput(f"where {where!r}: {str(error).splitlines()[0]}") from None
        return [rows[place] for (place,) in sorted(found)]
    for name, value in (where or {}).items():
        if name not in names:
            raise KeyError(f"where: {name!r}: expected one of {', '.join(names)}")
        allowed = value if isinstance(value, list) else [value]
        rows = [row for row in rows if row.get(name) in allowed]
    return rows
