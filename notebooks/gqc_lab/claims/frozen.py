"""The committed results of the paper's runs: small parquet files, sealed by checksums.

::

    paper/results/<batch>/
      results.parquet   a row per saved result, as `gqc_lab.runs.load` gives it
      history.parquet   the records and columns that claims and figures read
      runs.json         each run's id, inputs, environment and time; the files' checksums
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow

from gqc_lab.errors import BadInput
from gqc_lab.runs.plan import Batch
from gqc_lab.runs.results import Runs, load
from gqc_lab.runs.store import CorruptRun, Store, file_hash, read_note, seal, write_json

FIRST_SEED = 1000  #: smaller ones are for exploration and tuning
RESULTS, HISTORY, RUNS = "results.parquet", "history.parquet", "runs.json"


@dataclass(frozen=True)
class Frozen:
    """The committed results of one batch, in ``folder``; ``record`` is its runs.json."""

    name: str
    folder: Path
    record: dict[str, Any]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """A row per run: id, parameters, seconds, started, environment (place in the list)."""
        return list(self.record["runs"])

    def surroundings(self, run: dict[str, Any]) -> dict[str, Any]:
        """Return a run's environment, and the registration that it was made under."""
        found = {"environment": self.record["environments"][run["environment"]]}
        if "registration" in run:
            found["registration"] = self.record["registrations"][run["registration"]]
        return found

    def confirmatory(self, claim: str, rule: str) -> set[str]:
        """Return the ids of the runs that are confirmatory for a claim with that rule."""
        return {
            run["id"]
            for run in self.runs
            if run["parameters"].get("seed", 0) >= FIRST_SEED
            and (made_under := self.surroundings(run).get("registration"))
            and made_under["commit"]
            and made_under["rules"].get(claim) == rule
        }

    @property
    def fingerprint(self) -> str:
        """Hash of everything that was frozen."""
        return str(self.record["seal"])

    def only(self, ids: Collection[str]) -> "Frozen":
        """Return what these runs gave."""
        runs = [run for run in self.runs if run["id"] in ids]
        chosen = Frozen(self.name, self.folder, {**self.record, "runs": runs})
        for name in ("results", "history"):
            frame = getattr(self, name)
            chosen.__dict__[name] = frame[frame["run"].isin(list(ids))]
        return chosen

    @cached_property
    def results(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / RESULTS)

    @cached_property
    def history(self) -> pd.DataFrame:
        """The kept records; empty if the notebook saves none."""
        is_sealed = HISTORY in self.record.get("files", {})
        return pd.read_parquet(self.folder / HISTORY) if is_sealed else pd.DataFrame({"run": []})


def load_frozen(folder: Path | str) -> dict[str, Frozen]:
    """Load the committed batches under ``folder``, by name, and check every file's checksum.

    Raises: CorruptRun: a file was changed, is missing, or was never frozen.
    """
    places = sorted(Path(folder).glob(f"*/{RUNS}"))
    return {place.parent.name: _read(place.parent) for place in places}


def _read(folder: Path) -> Frozen:
    place = folder / RUNS
    record = read_note(place)  # empty where it was cut short
    if seal(record)["seal"] != record.get("seal"):
        raise CorruptRun(f"{place}: does not match its own checksum")
    for name, expected in record["files"].items():
        path = folder / name
        if not path.is_file() or file_hash(path) != expected:
            raise CorruptRun(f"{path}: is not what was frozen; freeze the batch again")
    return Frozen(folder.name, folder, record)


def freeze(
    batch: Batch,
    store: Path | str,
    folder: Path | str,
    columns: list[str] | None = None,
    rows: str = "",
) -> Frozen:
    """Copy a batch's finished runs from a run store to ``folder/<batch>``.

    Runs that are frozen there already stay where the store has none of their parameters, so that
    one seed more does not ask for the others again.  A run whose notebook or source has changed
    since is taken where there is no present one; runs.json says so (``is_current``).

    Args:
        columns: of the histories to keep; None: all; []: no histories.
        rows: SQL condition on the history's rows to keep; "": all.
    Raises: BadInput: a run of the batch is neither in the store nor frozen, a column is unknown,
        what is frozen lacks one, or ``rows`` leaves out that a run diverged.
    """
    place, target = Store(store), Path(folder) / batch.name
    old = None
    with contextlib.suppress(CorruptRun):  # there is none, or freezing again repairs it
        old = _read(target)
    chosen = _choose(batch, place, old)
    loaded = load(place.root, ids=[r["id"] for r in chosen if not r["is_frozen"]])
    kept = [r["id"] for r in chosen if r["is_frozen"]]
    frames = {RESULTS: _join(batch, loaded.results, old.results if old else None, kept)}
    if columns != []:
        history = _select(batch, loaded, columns, rows)
        frames[HISTORY] = _join(batch, history, old.history if old else None, kept)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        new = Path(made) / batch.name  # complete before what is there goes
        new.mkdir()
        try:
            for name, frame in frames.items():
                frame.to_parquet(new / name, index=False, compression="zstd")
        except pyarrow.ArrowException as error:
            raise BadInput(f"{batch.name}: {name}: {' '.join(map(str, error.args))}") from None
        write_json(new / RUNS, seal(_record(batch, chosen, new)))
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
    return _read(target)


def _select(batch: Batch, loaded: Runs, columns: list[str] | None, rows: str) -> pd.DataFrame:
    history = loaded.history
    if history.empty:
        return history
    if missing := [name for name in columns or [] if name not in history]:
        raise BadInput(f"{batch.name}: no history column {', '.join(missing)}")
    kept = ["run", *(n for n in columns or history.columns if n != "run")]
    with duckdb.connect() as connection:
        connection.register("history", history)
        chosen = connection.execute("FROM history" + (f" WHERE {rows}" if rows else "")).df()
    shared = {"loss", *map(str, loaded.results)} & {*history}
    for name in sorted(shared) if rows else ():
        if name == "loss" or re.search(rf"\b{re.escape(name)}\b", rows):
            _refuse_to_hide(batch, name, loaded, chosen, rows)
    return chosen[kept]


def _refuse_to_hide(batch: Batch, name: str, loaded: Runs, chosen: pd.DataFrame, rows: str) -> None:
    """Refuse to leave out that a run ended without a number: NaN is stored as no value is.

    The loss is in each record.  Others are now and then: there the result has to have none, too.
    """
    history, results = loaded.history, loaded.results
    is_end = history["run"] != history["run"].shift(-1)
    if "microbatch" in history:  # a run may have trained several methods
        is_end |= history["microbatch"].shift(-1) <= history["microbatch"]
    diverged = history[is_end & history[name].isna()]
    if name != "loss":
        diverged = diverged[diverged["run"].isin(results.loc[results[name].isna(), "run"])]
    diverged = diverged[~diverged["run"].isin(chosen.loc[chosen[name].isna(), "run"])]
    for end in diverged.to_dict("records"):
        more = "loss IS NULL" if name == "loss" else f"microbatch = {end.get('microbatch', '...')}"
        raise BadInput(
            f"{batch.name}: run {end['run']} ended with {name} = NaN, and rows: {rows!r} leaves "
            f"that out: it would be a run that was measured less often; add OR {more} to rows"
        )


def _join(
    batch: Batch, new: pd.DataFrame, old: pd.DataFrame | None, kept: list[str]
) -> pd.DataFrame:
    """Join the new rows and those of kept runs, which must have the same columns."""
    if old is None or not kept:
        return new
    old = old[old["run"].isin(kept)]
    if new.empty:
        return old
    if missing := sorted(map(str, set(new) ^ set(old))):
        raise BadInput(
            f"{batch.name}: column {', '.join(missing)} is not in both the frozen runs and the new "
            "ones: run the whole batch again, or delete what is frozen of it"
        )
    return pd.concat([old, new[list(old)]], ignore_index=True)


def _choose(batch: Batch, store: Store, old: Frozen | None) -> list[dict[str, Any]]:
    """Choose each run's record: the present one, or the latest with the same parameters."""
    records = []
    for key in sorted(store.finished()):
        with contextlib.suppress(CorruptRun):  # left to the next batch
            records.append({**store.record(key), "is_frozen": False})
    records = [r for r in records if r["notebook"] == batch.notebook.name]
    if old is not None:
        common = {"is_frozen": True, "inputs": old.record["inputs"]}
        records += [{**r, **common, **old.surroundings(r)} for r in old.runs]
    chosen: list[dict[str, Any]] = []
    for run in batch.runs:
        alike = [r for r in records if r["parameters"] == run.parameters]
        if not alike:
            wanted = {n: run.parameters[n] for n in (*run.varied, "seed") if n in run.parameters}
            raise BadInput(
                f"{batch.name}: no finished run of {wanted} in {store.root}; run the batch first"
            )
        best = max(alike, key=lambda r: (r["id"] == run.id, not r["is_frozen"], r["started"]))
        chosen.append({**best, "is_current": best["id"] == run.id})
    return chosen


def _record(batch: Batch, chosen: list[dict[str, Any]], target: Path) -> dict[str, Any]:
    environments: list[dict[str, Any]] = []
    registrations: list[dict[str, Any]] = []
    runs = []
    for record in chosen:
        kept = {k: record[k] for k in ("id", "is_current", "parameters", "started", "seconds")}
        kept["environment"] = _place_in(environments, record["environment"])
        if record.get("registration"):
            kept["registration"] = _place_in(registrations, record["registration"])
        runs.append(kept)
    files = sorted(path.name for path in target.iterdir())
    return {
        "format": 1,
        "notebook": batch.notebook.name,
        "runs": runs,
        "inputs": chosen[0]["inputs"],
        "environments": environments,
        "registrations": registrations,
        "files": {name: file_hash(target / name) for name in files},
    }


def _place_in(rows: list[dict[str, Any]], row: dict[str, Any]) -> int:
    """Return the place of ``row`` in the list; added where it is new."""
    if row not in rows:
        rows.append(row)
    return rows.index(row)
