"""Why a run is not finished: what differs from the finished run that is most like it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from gqc_lab.errors import BadInput
from gqc_lab.runs.plan import Batch, Run
from gqc_lab.runs.progress import show_value
from gqc_lab.runs.results import read_records
from gqc_lab.runs.store import RECORD, CorruptRun, Store


def find_run(batch: Batch, start: str) -> Run:
    """The batch's run whose id begins with ``start``.  Raises: BadInput: none, or several."""
    matches = [run for run in batch.runs if start and run.id.startswith(start)]
    if len(matches) != 1:
        raise BadInput(
            f"{start!r}: {len(matches)} of the {len(batch.runs)} runs of {batch.name} begin so; "
            "`gqc batch plan` lists their ids"
        )
    return matches[0]


def explain(run: Run, batch: Batch, store: Store) -> list[str]:
    """Lines that say whether ``run`` is finished and, if not, what changed since one that is."""
    if run.id in store.finished():
        try:
            store.verify(run.id)
        except CorruptRun as error:
            return [f"{run.id} is corrupt ({error}) and will run again"]
        return [f"{run.id} is finished; nothing that it depends on has changed"]
    lines = [f"{run.id} is not finished"]
    if store.failed(run.id).is_dir():
        record = json.loads((store.failed(run.id) / RECORD).read_text(encoding="utf-8"))
        lines.append(f"it failed: {record['error']}")
    if store.partial(run.id).is_dir():
        lines.append("it was interrupted (or is running) and goes on from its checkpoint")
    records = [r for r in read_records(store).values() if r["notebook"] == batch.notebook.name]
    if not records:
        return [*lines, f"no run of {batch.notebook.name} is in the store"]
    nearest = max(records, key=lambda r: (_alike(run.parameters, r["parameters"]), r["started"]))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(nearest["started"]))
    lines.append(f"nearest in the store: {nearest['id']} of {when}; since then, or unlike it:")
    return lines + [f"  {line}" for line in differences(run, nearest)]


def _alike(parameters: Mapping[str, Any], others: Mapping[str, Any]) -> int:
    return sum(others.get(name, ...) == value for name, value in parameters.items())


def differences(run: Run, record: Mapping[str, Any]) -> Iterator[str]:
    """One line for each input of ``run`` that differs from the stored ``record``."""
    old, new = record["parameters"], run.parameters
    for name in {**old, **new}:
        if name not in old or name not in new:
            yield f"parameter {name}: {'new' if name in new else 'gone'}"
        elif old[name] != new[name]:
            yield f"parameter {name}: {show_value(old[name])} -> {show_value(new[name])}"
    for part, label in (("notebook", "notebook cell"), ("source", "source"), ("data", "data")):
        before, after = record["inputs"].get(part, {}), run.inputs[part]
        for name in sorted({**before, **after}):
            if name not in before or name not in after:
                yield f"{label} {name}: {'new' if name in after else 'gone'}"
            elif before[name] != after[name]:
                yield f"{label} {name}: changed"
