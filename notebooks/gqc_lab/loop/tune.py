r"""A small, fair tuner: every method gets the same number of trials, on seeds that nobody reports.

Methods that are compared have to be tuned alike, and a setting that was chosen for its luck on a
seed must not be reported on that seed.  So `tune` takes one budget for all methods, refuses seeds
that the report uses, keeps every trial, and says where the best setting lies at the edge of what
was tried.

Settings of a space with a `Range` are a Latin hypercube: each range is cut into as many equal parts
as there are trials, and each part holds one trial.  Those of lists alone are points of their grid,
all of them where the budget allows.

Source: McKay, Beckman and Conover 1979 (Latin hypercube).
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from gqc_lab.loop.placement import make_generator

__all__ = ["Range", "Tuning", "read_tuned", "settings", "tune"]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, tried evenly, by default on a log scale.

    Raises:
        ValueError: not ``low < high``, or ``low`` is not above 0 on a log scale.
    """

    low: float
    high: float
    is_log: bool = True

    def __post_init__(self) -> None:
        if not (-math.inf < self.low < self.high < math.inf):
            raise ValueError(
                f"Range({self.low!r}, {self.high!r}): expected low < high, both finite"
            )
        if self.is_log and not self.low > 0:
            raise ValueError(f"Range({self.low!r}, {self.high!r}): expected low > 0 on a log scale")

    def at(self, share: float) -> float:
        """Return the number at a share of the way, in [0, 1].

        It has three significant digits, or more where the range is narrow.
        """
        if self.is_log:
            value = self.low ** (1 - share) * self.high**share
        else:
            value = self.low * (1 - share) + self.high * share
        size = max(abs(self.low), abs(self.high))
        width = max(self.high / size - self.low / size, 1e-14)
        digits = 3 + max(0, round(-math.log10(width)))
        return min(max(float(f"{value:.{digits}g}"), self.low), self.high)

    def share(self, value: float) -> float:
        """Return where in the range ``value`` lies: the inverse of `at`."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


Space = Mapping[str, Range | Sequence[Any]]
Measure = Callable[[str, dict[str, Any], int], Mapping[str, Any]]


def settings(space: Space, budget: int, generator: torch.Generator) -> list[dict[str, Any]]:
    """Return ``budget`` different settings of a space; see the module.

    Args:
        space: of each hyperparameter a `Range`, or a list of values.
        generator: on the CPU.
    Raises:
        ValueError: an empty space or list, or a grid with fewer points than the budget, which would
            give the method fewer trials than the others.
    """
    _check_count("budget", budget)
    if not space or not all(isinstance(v, Range) or len(v) for v in space.values()):
        raise ValueError(f"space={dict(space)!r}: expected a Range or some values for each name")
    lists = {name: list(v) for name, v in space.items() if not isinstance(v, Range)}
    if len(lists) == len(space):
        grid = [
            dict(zip(lists, point, strict=True)) for point in itertools.product(*lists.values())
        ]
        if len(grid) < budget:
            raise ValueError(
                f"space={lists!r}: its grid has {len(grid)} points, expected at least "
                f"budget={budget}, as every method gets; add values"
            )
        chosen = torch.randperm(len(grid), generator=generator)[:budget].sort().values
        return [grid[i] for i in chosen.tolist()]
    columns = {name: _column(values, budget, generator) for name, values in space.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(budget)]


def _column(values: Range | Sequence[Any], budget: int, generator: torch.Generator) -> list[Any]:
    order = torch.randperm(budget, generator=generator)
    if not isinstance(values, Range):
        return [values[i % len(values)] for i in order.tolist()]
    within = torch.rand(budget, generator=generator, dtype=torch.float64)
    return [values.at(share) for share in ((order + within) / budget).tolist()]


@dataclass(frozen=True)
class Tuning:
    """Result of `tune`.

    Args:
        trials: a row per method, trial and seed: ``method``, ``trial`` (from 1), ``seed``, the
            hyperparameters (missing where a method has none of that name), what was measured.
        metric: the column that settings were chosen by; is_larger_better: its sense.
        spaces: of each method.
    """

    trials: pd.DataFrame
    metric: str
    is_larger_better: bool
    spaces: Mapping[str, Space]

    @property
    def table(self) -> pd.DataFrame:
        """Table of settings: ``method``, ``trial``, hyperparameters, the metric's mean over seeds.

        The best first within each method; NaN, also where one seed is NaN or infinite, last.
        """
        values = self.trials[self.metric].astype(float)
        finite = self.trials.assign(**{self.metric: values.where(values.abs() < math.inf)})
        names = list(dict.fromkeys(name for space in self.spaces.values() for name in space))
        groups = finite.groupby(["method", "trial"], sort=False)
        rows = groups.agg(
            **{name: (name, "first") for name in names},
            **{self.metric: (self.metric, lambda values: values.mean(skipna=False))},
        ).reset_index()
        rows["order"] = rows["method"].map({m: i for i, m in enumerate(self.spaces)})
        sign = -1 if self.is_larger_better else 1
        rows["rank"] = (sign * rows[self.metric]).rank(method="first", na_option="bottom")
        rows = rows.sort_values(["order", "rank"]).drop(columns=["order", "rank"])
        return rows.reset_index(drop=True)

    @property
    def best(self) -> dict[str, dict[str, Any]]:
        """The best setting of each method.

        Raises:
            ValueError: a method has no trial that ended in a number.
        """
        first = self.table.drop_duplicates("method").set_index("method")
        for method, value in first[self.metric].items():
            if math.isnan(value):
                raise ValueError(f"method={method!r}: no trial ended in a finite {self.metric}")
        chosen = first["trial"].to_dict()
        return {m: self._values(m, int(chosen[m])) for m in self.spaces}

    @property
    def at_edge(self) -> dict[str, list[str]]:
        """Hyperparameters of each method whose best value is in the outermost part of its range."""
        budget, edges = int(self.trials["trial"].max()), {}
        for method, values in self.best.items():
            ranges = {n: s for n, s in self.spaces[method].items() if isinstance(s, Range)}
            parts = {name: budget * r.share(values[name]) for name, r in ranges.items()}
            edges[method] = [n for n, part in parts.items() if not 1 <= part < budget - 1]
        return edges

    def _values(self, method: str, trial: int) -> dict[str, Any]:
        is_it = (self.trials["method"] == method) & (self.trials["trial"] == trial)
        row = self.trials[is_it].iloc[0]
        return {name: _plain(row[name]) for name in self.spaces[method]}


def tune(
    measure: Measure,
    spaces: Mapping[str, Space],
    *,
    budget: int,
    seeds: Sequence[int],
    report_seeds: Iterable[int],
    metric: str,
    is_larger_better: bool,
    seed: int = 0,
    path: str | Path | None = None,
    has_bar: bool = True,
) -> Tuning:
    """Try ``budget`` settings of every method.

    Args:
        measure: called with method, setting and seed; returns numbers by name, ``metric`` among
            them.  NaN, inf and None count as worst: a run that diverged has lost.
        spaces: of each method, see `settings`.
        budget: settings of each method.
        seeds: of the trials; every setting is measured on each.
        report_seeds: those that results will be reported on: none may be among ``seeds``.
        metric: which number decides, by its mean over seeds; is_larger_better: its sense.
        seed: of the choice of settings.
        path: file of one JSON line a trial; trials that it has are not repeated.  None: keep none.
        has_bar: a tqdm bar on standard error.
    Raises: ValueError: a seed of the report among ``seeds``, another bad argument, ``measure``
        without the metric, or a file of another tuning.
    """
    seeds = list(seeds)
    _check_seeds(seeds, report_seeds)
    if not spaces:
        raise ValueError("spaces={}: expected a space for each method")
    plan = [
        (method, trial, s, values)
        for method, space in spaces.items()
        for trial, values in enumerate(_trials(method, space, budget, seed), 1)
        for s in seeds
    ]
    log = _Log(path, {"budget": budget, "seeds": seeds, "seed": seed, "spaces": _spell(spaces)})
    rows = []
    for method, trial, s, values in tqdm(plan, desc="tune", unit="trial", disable=not has_bar):
        numbers = log.find(method, trial, s)
        if numbers is None:
            numbers = {name: _plain(v) for name, v in measure(method, dict(values), s).items()}
            if metric not in numbers:
                raise ValueError(f"metric={metric!r}: measure gave {', '.join(numbers) or 'none'}")
            log.add(method, trial, s, values, numbers)
        rows.append({"method": method, "trial": trial, "seed": s, **values, **numbers})
    return Tuning(pd.DataFrame(rows), metric, is_larger_better, dict(spaces))


def _trials(method: str, space: Space, budget: int, seed: int) -> list[dict[str, Any]]:
    return settings(space, budget, make_generator(seed, f"tune {method}"))


def _check_seeds(seeds: list[int], report_seeds: Iterable[int]) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={seeds!r}: expected some, none twice")
    if both := sorted(set(seeds) & set(report_seeds)):
        raise ValueError(
            f"seeds={seeds!r}: the report uses {both}; tune on others, or its numbers are of the "
            "luck that settings were chosen for"
        )


def read_tuned(
    path: Path, keys: Sequence[str], metric: str, is_larger_better: bool = False
) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the best trial of each group in a file of trials, without its metric.

    Args:
        path: CSV whose first lines may be comments that begin with "#"; empty cells are settings
            that a method does not have.
        keys: columns that name a group; the first row of several equally good ones counts.
        metric: column that decides; a row without it is taken as it is.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    best: dict[tuple[str, ...], tuple[float, dict[str, Any]]] = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        key = tuple(row.pop(name) for name in keys)
        rank = float(row.pop(metric, None) or "inf") * (-1 if is_larger_better else 1)
        if key not in best or rank < best[key][0]:
            best[key] = rank, {n: float(text) for n, text in row.items() if text}
    return {key: values for key, (_, values) in best.items()}


class _Log:
    """Trials on disk, if anywhere; the first line identifies the tuning."""

    def __init__(self, path: str | Path | None, header: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._found: dict[tuple[str, int, int], dict[str, Any]] = {}
        if self._path is None:
            return
        lines = _read(self._path) if self._path.exists() else []
        if lines and lines[0] != header:
            differs = next(k for k in header if lines[0].get(k) != header[k])
            raise ValueError(
                f"{self._path}: of another tuning, whose {differs} is {lines[0].get(differs)!r}; "
                f"here it is {header[differs]!r}; use another file"
            )
        for line in lines[1:]:
            self._found[line["method"], line["trial"], line["seed"]] = line["numbers"]
        # Rewritten, as the last line may have been cut short.
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(f".{self._path.name}.part")
        text = "".join(json.dumps(line) + "\n" for line in lines or [header])
        part.write_text(text, encoding="utf-8")
        os.replace(part, self._path)

    def find(self, method: str, trial: int, seed: int) -> dict[str, Any] | None:
        return self._found.get((method, trial, seed))

    def add(
        self, method: str, trial: int, seed: int, values: dict[str, Any], numbers: dict[str, Any]
    ) -> None:
        if self._path is not None:
            line = {"method": method, "trial": trial, "seed": seed}
            line |= {"values": values, "numbers": numbers}
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, except a last one that a killed run left incomplete."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is not of a trial ({error})") from None
    return found


def _spell(spaces: Mapping[str, Space]) -> dict[str, Any]:
    """Return the spaces as JSON would return them."""
    return {
        method: {n: repr(v) if isinstance(v, Range) else list(v) for n, v in space.items()}
        for method, space in spaces.items()
    }


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _check_count(name: str, value: Any) -> None:
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        raise ValueError(f"{name}={value!r}: expected an integer of at least 1")
