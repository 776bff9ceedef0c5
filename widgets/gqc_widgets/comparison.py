"""Saved runs side by side: any recorded number against tokens, steps, draws or time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gqc_lab import figures, runs

#: what may be drawn to the right -> the column of the histories
AXES = {"tokens": "tokens", "steps": "steps", "draws": "microbatch", "seconds": "seconds"}
MAX_POINTS = 300  #: of a run


class Comparison:
    """The finished runs of a store.

    Args:
        store: the folder given to ``gqc batch run --runs``, or what `gqc_lab.runs.load` returned.
        where: as of `gqc_lab.runs.load`.
    Raises:
        FileNotFoundError: there is no such store.
        ValueError: no run has a history with the columns method and seed.
    """

    def __init__(
        self, store: Path | str | runs.Runs = "runs", where: str | Mapping[str, Any] | None = None
    ) -> None:
        loaded = store if isinstance(store, runs.Runs) else runs.load(store, where)
        self.results, self.history = loaded.results, loaded.history
        if self.history.empty or not {"method", "seed"} <= set(self.history):
            raise ValueError(f"{loaded!r}: expected runs with histories of methods and seeds")

    @property
    def metrics(self) -> list[str]:
        """Recorded numbers."""
        numbers = self.history.select_dtypes("number").dropna(axis=1, how="all")
        return [str(name) for name in numbers if name not in ("seed", *AXES.values())]

    @property
    def axes(self) -> list[str]:
        """Those of `AXES` that were recorded."""
        return [axis for axis, column in AXES.items() if column in self.history]

    @property
    def groups(self) -> list[str]:
        """What runs can be told apart by: the method, and all that differs but not by seed.

        A store's results hold a run's parameters beside what came out, which each seed changes.
        """
        identity = ("run", "notebook", "method", "seed")
        names = [str(name) for name in self.results if name not in identity]
        shown = self.results[names].astype(str)
        seeds = self.results["seed"]
        fewest = min(2, seeds.nunique())
        return ["method"] + [
            name
            for name in names
            if name not in self.metrics
            and shown[name].nunique() > 1
            and seeds.groupby(shown[name]).nunique().min() >= fewest
        ]

    def rows(self, metric: str, axis: str, group: str = "method", smoothing: int = 1) -> Any:
        """One row per drawn point: ``method`` (the group's name), ``seed``, x and ``metric``.

        Args:
            smoothing: span of an exponential average over a run's records of ``metric``; 1: none.
        Raises: ValueError: an unknown choice, or two runs that cannot be told apart.
        """
        for kind, value, known in (
            ("metric", metric, self.metrics),
            ("axis", axis, self.axes),
            ("group", group, self.groups),
        ):
            if value not in known:
                raise ValueError(f"{kind}={value!r}: expected one of {', '.join(known)}")
        if not smoothing >= 1:
            raise ValueError(f"smoothing={smoothing!r}: expected a span of at least 1 record")
        x = AXES[axis]
        frame = self.history[["run", "method", "seed", x, metric]].dropna().copy()
        if group != "method":
            values = self.results.drop_duplicates("run").set_index("run")[group]
            frame["method"] += f", {group}=" + frame["run"].map(values).astype(str)
        kept = [_thin(part, x, metric, smoothing) for part in _runs(frame, group)]
        return pd.concat(kept, ignore_index=True)

    def figure(
        self, metric: str, axis: str, group: str = "method", smoothing: int = 1
    ) -> go.Figure:
        """Mean of each group in a band of its 95 % interval over seeds; see `rows`."""
        rows = self.rows(metric, axis, group, smoothing)
        return figures.loss_against(rows, x=AXES[axis], y=metric)


def _runs(frame: pd.DataFrame, group: str) -> list[pd.DataFrame]:
    """Each run's records; a method and a seed must be one run."""
    for (method, seed), part in frame.groupby(["method", "seed"]):
        if part["run"].nunique() > 1:
            raise ValueError(
                f"{part['run'].nunique()} runs of {method}, seed {seed}: expected one; group by "
                f"what they differ in instead of {group}, or select some with `where`"
            )
    return [part for _, part in frame.groupby(["method", "seed"], sort=False)]


def _thin(part: pd.DataFrame, x: str, metric: str, smoothing: int) -> pd.DataFrame:
    """Smoothed, one record for each x (the last), evenly thinned for the eye."""
    values = part[metric].astype(float)
    part = part.assign(**{metric: values.ewm(span=smoothing).mean()})
    part = part.drop_duplicates(x, keep="last")
    every = -(-len(part) // MAX_POINTS)
    return part.iloc[(len(part) - 1) % every :: every]
