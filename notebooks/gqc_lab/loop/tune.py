r"""A small, fair tuner: every method gets the same number of trials, on seeds that nobody reports.

A setting that was chosen for its luck on a seed must not be reported on that seed: seeds that the
report uses are refused.  Every trial is kept.

Trials are a Latin hypercube: each range is cut into as many equal parts as there are trials, and
each part holds one trial.

Source: McKay, Beckman and Conover 1979 (Latin hypercube).
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, tried evenly on a log scale.

    Raises: ValueError: not ``0 < low < high``.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (0 < self.low < self.high < math.inf):
            raise ValueError(f"Range({self.low!r}, {self.high!r}): expected 0 < low < high < inf")

    def at(self, share: float) -> float:
        """Return the number at a share of the way, in [0, 1], to at least three digits."""
        digits = 3 + max(0, round(-math.log10(max(1 - self.low / self.high, 1e-14))))
        value = self.low ** (1 - share) * self.high**share
        return min(max(float(f"{value:.{digits}g}"), self.low), self.high)


Space = Mapping[str, Range]
Measure = Callable[[str, dict[str, Any], int], Mapping[str, Any]]


def propose(space: Space, budget: int, seed: int, stream: str) -> list[dict[str, float]]:
    """Return ``budget`` trials of a space, by the generator of ``seed`` and ``stream``."""
    import torch

    from gqc_lab.loop.placement import make_generator

    generator, columns = make_generator(seed, stream), {}
    for name, values in space.items():
        order = torch.randperm(budget, generator=generator)
        within = torch.rand(budget, generator=generator, dtype=torch.float64)
        columns[name] = [values.at(share) for share in ((order + within) / budget).tolist()]
    return [{name: column[i] for name, column in columns.items()} for i in range(budget)]


@dataclass(frozen=True)
class Tuning:
    """Result of `tune`.

    Args:
        trials: a row per method, trial and seed: ``method``, ``trial`` (from 1), ``seed``, the
            hyperparameters (missing where a method has none of that name), what was measured.
        metric: the column that settings were chosen by, larger is better.
        spaces: of each method.
    """

    trials: pd.DataFrame
    metric: str
    spaces: Mapping[str, Space]

    @property
    def table(self) -> pd.DataFrame:
        """Table of settings with the metric's mean over seeds, the best of each method first.

        NaN, also where one seed is NaN or infinite, comes last.
        """
        values = self.trials[self.metric].astype(float)
        finite = self.trials.assign(**{self.metric: values.where(values.abs() < math.inf)})
        names = list(dict.fromkeys(name for space in self.spaces.values() for name in space))
        rows = finite.groupby(["method", "trial"], sort=False).agg(
            **{name: (name, "first") for name in names},
            **{self.metric: (self.metric, lambda values: values.mean(skipna=False))},
        )
        best_first: dict[str, Any] = {"by": self.metric, "ascending": False, "kind": "stable"}
        methods = rows.reset_index().groupby("method", sort=False)
        return pd.concat([each.sort_values(**best_first) for _, each in methods], ignore_index=True)

    @property
    def best(self) -> dict[str, dict[str, float]]:
        """The best setting of each method.  Raises: ValueError: no trial ended in a number."""
        best = {}
        for row in self.table.drop_duplicates("method").to_dict("records"):
            if math.isnan(row[self.metric]):
                method = row["method"]
                raise ValueError(f"method={method!r}: no trial ended in a finite {self.metric}")
            best[row["method"]] = {name: row[name] for name in self.spaces[row["method"]]}
        return best

    @property
    def at_edge(self) -> dict[str, list[str]]:
        """Hyperparameters of each method whose best value is the outermost that was tried."""
        edges = {}
        for method, best in self.best.items():
            tried = self.trials[self.trials["method"] == method]
            edges[method] = [n for n, v in best.items() if v in (tried[n].min(), tried[n].max())]
        return edges


def tune(
    measure: Measure,
    spaces: Mapping[str, Space],
    *,
    budget: int,
    seeds: Sequence[int],
    report_seeds: Iterable[int],
    metric: str,
    seed: int = 0,
    path: str | Path | None = None,
) -> Tuning:
    """Try ``budget`` settings of every method.

    Args:
        measure: called with method, setting and seed; returns numbers by name, ``metric`` among
            them.  NaN, inf and None count as worst: a run that diverged has lost.
        spaces: method -> what is tried.
        seeds: of the trials; every setting is measured on each.
        report_seeds: those that results will be reported on: none may be among ``seeds``.
        metric: which number decides, by its mean over seeds; larger is better.
        seed: of the choice of settings.
        path: file of one JSON line a trial; trials that it has are not repeated.  None: keep none.
    Raises: ValueError: a seed of the report among ``seeds``, or ``measure`` without the metric.
    """
    from tqdm import tqdm

    _check_seeds(budget, seeds, report_seeds)
    requests: list[dict[str, Any]] = [
        {"method": method, "trial": trial, "seed": s, "values": values}
        for method, space in spaces.items()
        for trial, values in enumerate(propose(space, budget, seed, f"tune {method}"), 1)
        for s in seeds
    ]
    known, rows = _read_trials(path), []
    for each in tqdm(requests, desc="tune", unit="trial", disable=None):
        numbers = known.get(json.dumps(each))
        if numbers is None:
            numbers = dict(measure(each["method"], dict(each["values"]), each["seed"]))
            if metric not in numbers:
                raise ValueError(f"metric={metric!r}: measure gave {', '.join(numbers) or 'none'}")
            if taken := sorted({"method", "trial", *each["values"]} & numbers.keys()):
                raise ValueError(f"measure gave {', '.join(taken)}: a name of settings and trials")
            if path is not None:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({**each, "numbers": numbers}) + "\n")
        rows.append({**each, **each["values"], **numbers})
    return Tuning(pd.DataFrame(rows).drop(columns="values"), metric, dict(spaces))


def tune_closer(
    run: Callable[..., Tuning],
    spaces: Mapping[str, Space],
    around: Callable[[str, float], Range],
    *,
    budgets: tuple[int, int],
    rounds: int = 1,
) -> Tuning:
    """Try settings of the whole space of each method, then more close to its best.

    Args:
        run: `tune`, all but spaces, budget and seed given.
        around: from a hyperparameter and its best value to what to try close to it.
        budgets: settings of the whole space, and of each round close to the best.
        rounds: at most; from the second on only of methods whose best value lies outermost.
    """
    tuning, methods = run(spaces, budget=budgets[0]), list(spaces)
    for number in range(1, rounds + 1):
        best = tuning.best
        near = {m: {name: around(name, value) for name, value in best[m].items()} for m in methods}
        close = run(near, budget=budgets[1], seed=number).trials
        close["trial"] += tuning.trials["trial"].max()
        trials = pd.concat([tuning.trials, close], ignore_index=True)
        tuning = Tuning(trials, tuning.metric, dict(spaces))
        methods = [m for m, outermost in tuning.at_edge.items() if outermost and m in methods]
        if not methods:
            break
    return tuning


def _check_seeds(budget: int, seeds: Sequence[int], report_seeds: Iterable[int]) -> None:
    if not (budget >= 1 and len(seeds)):
        raise ValueError(f"budget={budget!r}, seeds={list(seeds)}: expected at least one of each")
    if both := sorted(set(seeds) & set(report_seeds)):
        raise ValueError(
            f"seeds={list(seeds)}: the report uses {both}; tune on others, or its numbers are of "
            "the luck that settings were chosen for"
        )


def _read_trials(path: str | Path | None) -> dict[str, dict[str, Any]]:
    """Return the numbers of each trial in a file; a line that a killed run cut short is skipped."""
    known: dict[str, dict[str, Any]] = {}
    if path is not None and Path(path).is_file():
        text = Path(path).read_text(encoding="utf-8")
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                trial = json.loads(line)
                numbers = trial.pop("numbers")
                known[json.dumps(trial)] = numbers
        if text and not text.endswith("\n"):
            Path(path).write_text(text + "\n", encoding="utf-8")
    return known
