"""Saved runs side by side: any recorded number against tokens, steps, draws or time."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd

from gqc_lab import figures, runs
from gqc_lab.errors import check_name
from gqc_widgets.fields import say
from gqc_widgets.panels import Panel, Panels, figure_panel

#: choice of x -> the column of the histories
AXES = {"tokens": "tokens", "steps": "steps", "draws": "microbatch", "seconds": "seconds"}
MAX_POINTS = 300  #: of a run


class SavedRuns:
    """The finished runs of a store, and what can be drawn of them.

    Args:
        store: the folder given to ``gqc batch run --runs``, or what `gqc_lab.runs.load` returned.
        where: as in `gqc_lab.runs.load`.
    Raises:
        FileNotFoundError: there is no such store.
        ValueError: no run has a history with the columns method and seed.
    """

    def __init__(
        self, store: Path | str | runs.Runs = "runs", where: str | Mapping[str, Any] | None = None
    ) -> None:
        loaded = store if isinstance(store, runs.Runs) else runs.load(store, where)
        self.results, self.history = loaded.results, loaded.history
        if not isinstance(store, runs.Runs) and where is None:
            for place in sorted(Path(store).glob("live/*/history.parquet")):
                self._add(pd.read_parquet(place), place.parent.name)
        if not ({"method", "seed"} <= set(self.history) and self.metrics):
            raise ValueError(f"{loaded!r}: expected runs with histories: methods, seeds, numbers")

    def _add(self, history: pd.DataFrame, name: str) -> None:
        """Take in a run that a `gqc_widgets.Live` saved, as a method of its own."""
        who = str(history["method"].iloc[0]) if "method" in history else "loop"
        seed = history["seed"].iloc[0] if "seed" in history else 0
        identity = {"run": name, "method": f"{who}: {name}", "seed": seed}
        self.history = pd.concat([self.history, history.assign(**identity)], ignore_index=True)
        self.results = pd.concat([self.results, pd.DataFrame([identity])], ignore_index=True)

    @property
    def metrics(self) -> list[str]:
        """Names of the recorded numbers."""
        numbers = self.history.select_dtypes("number").dropna(axis=1, how="all")
        return [str(name) for name in numbers if name not in ("seed", *AXES.values())]

    @property
    def axes(self) -> list[str]:
        """Those of `AXES` that were recorded."""
        return [axis for axis, column in AXES.items() if column in self.history]

    @property
    def groups(self) -> list[str]:
        """What distinguishes runs: the method, and whatever differs other than by seed.

        The results of a store hold the parameters of a run next to its outcomes, which differ with
        each seed.
        """
        known = {"run", "notebook", "method", "seed", *self.metrics}
        names = [str(name) for name in self.results if name not in known]
        shown = self.results[names].astype(str)
        seeds = self.results["seed"]
        fewest = min(2, seeds.nunique())
        return ["method"] + [
            name
            for name in names
            if shown[name].nunique() > 1 and seeds.groupby(shown[name]).nunique().min() >= fewest
        ]

    def rows(
        self, metric: str, axis: str, group: str = "method", smoothing: int = 1
    ) -> pd.DataFrame:
        """Return a row for each drawn point: ``method`` (name of the group), ``seed``, x, metric.

        Args:
            smoothing: span of an exponential average over a run's records of ``metric``; 1: none.
        Raises: ValueError: an unknown choice, or two runs that the group does not distinguish.
        """
        check_name("metric", metric, self.metrics)
        check_name("axis", axis, self.axes)
        check_name("group", group, self.groups)
        if not smoothing >= 1:
            raise ValueError(f"smoothing={smoothing!r}: expected a span of at least 1 record")
        x = AXES[axis]
        frame = self.history[["run", "method", "seed", x, metric]].dropna().copy()
        if group != "method":
            keys = [key for key in ("run", "method") if key in self.results]
            values = self.results[keys].assign(value=self.results[group].astype(str))
            if (values := values.drop_duplicates()).duplicated(keys).any():
                raise ValueError(f"group={group!r}: a run has several values of it")
            found = frame[keys].merge(values, how="left")["value"]
            frame["method"] += f", {group}=" + found.astype(str).to_numpy()
        kept = []
        for (method, seed), part in frame.groupby(["method", "seed"], sort=False):
            if (count := part["run"].nunique()) > 1:
                raise ValueError(
                    f"{count} runs of {method}, seed {seed}: expected one; group by what they "
                    f"differ in instead of {group}, or select some with `where`"
                )
            part = part.assign(**{metric: part[metric].astype(float).ewm(span=smoothing).mean()})
            part = part.drop_duplicates(x, keep="last")
            every = -(-len(part) // MAX_POINTS)
            kept.append(part.iloc[(len(part) - 1) % every :: every])
        return pd.concat(kept, ignore_index=True)

    def panel(self, metric: str, axis: str, group: str = "method", smoothing: int = 1) -> Panel:
        """Return the mean of each group with its 95 % interval over seeds; see `rows`."""
        rows = self.rows(metric, axis, group, smoothing)
        figure = figures.loss_against(rows, x=AXES[axis], y=metric)
        return figure_panel(figure, figures.LABELS.get(metric, metric), AXES[axis])


class Compare(widgets.VBox):
    """Draw the finished runs of a store; see `SavedRuns` for the arguments and errors."""

    def __init__(
        self, store: Path | str | runs.Runs = "runs", where: str | Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(layout=widgets.Layout(width="100%"))
        self.model = SavedRuns(store, where)
        metrics = self.model.metrics
        first = "val_loss" if "val_loss" in metrics else metrics[0]
        self.metric = widgets.Dropdown(options=metrics, value=first, description="metric")
        self.axis = widgets.Dropdown(options=self.model.axes, description="against")
        self.group = widgets.Dropdown(options=self.model.groups, description="grouped by")
        self.smoothing = widgets.IntSlider(
            1, min=1, max=200, description="smoothing", tooltip="records averaged, roughly"
        )
        self.message, self.panels = widgets.HTML(), Panels([])
        choices = [self.metric, self.axis, self.group, self.smoothing]
        for choice in choices:
            choice.layout.width, choice.style.description_width = "240px", "initial"
            choice.observe(lambda _: self._draw(), "value")
        top = widgets.HBox(choices, layout=widgets.Layout(flex_flow="row wrap"))
        self.children = [top, self.message, self.panels]
        self.add_class("gqc-compare")
        self._draw()

    def _draw(self) -> None:
        chosen = [c.value for c in (self.metric, self.axis, self.group, self.smoothing)]
        try:
            self.panels.panels, self.message.value = [self.model.panel(*chosen)], ""
        except ValueError as error:  # choices that do not fit together
            self.panels.panels, self.message.value = [], say(html.escape(str(error)))
