"""Saved runs side by side: any recorded number against tokens, steps, draws or time."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd

from gqc_lab import figures, runs
from gqc_widgets.fields import say
from gqc_widgets.panels import Panels, figure_panel

#: choice of x -> the column of the histories
AXES = {"tokens": "tokens", "steps": "steps", "draws": "microbatch", "seconds": "seconds"}
MAX_POINTS = 300  #: of a run


class Compare(widgets.VBox):
    """Draw the finished runs of a store, and those that *Save* of a `Live` wrote into it.

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
        super().__init__(layout=widgets.Layout(width="100%"))
        loaded = store if isinstance(store, runs.Runs) else runs.load(store, where)
        self.results, self.history = loaded.results, loaded.history
        if not isinstance(store, runs.Runs) and where is None:
            for place in sorted(Path(store).glob("live/*/history.parquet")):
                self._add(pd.read_parquet(place), place.parent.name)
        if not ({"method", "seed"} <= set(self.history) and self.metrics):
            raise ValueError(f"{loaded!r}: expected runs with histories: methods, seeds, numbers")
        axes = [axis for axis, column in AXES.items() if column in self.history]
        first = "val_loss" if "val_loss" in self.metrics else self.metrics[0]
        self.metric = widgets.Dropdown(options=self.metrics, value=first, description="metric")
        self.axis = widgets.Dropdown(options=axes, description="against")
        self.group = widgets.Dropdown(options=self.groups, description="grouped by")
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

    def rows(self) -> pd.DataFrame:
        """Return a row for each drawn point: ``method`` (name of the group), ``seed``, x, metric.

        Smoothing is an exponential average over a run's records of the metric, with this span.

        Raises: ValueError: a run has several values of the group, which also has to distinguish
            runs of one method and seed.
        """
        x, metric, group = AXES[self.axis.value], self.metric.value, self.group.value
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
            smooth = part[metric].astype(float).ewm(span=self.smoothing.value).mean()
            part = part.assign(**{metric: smooth})
            part = part.drop_duplicates(x, keep="last")
            every = -(-len(part) // MAX_POINTS)
            kept.append(part.iloc[(len(part) - 1) % every :: every])
        return pd.concat(kept, ignore_index=True)

    def _draw(self) -> None:
        x, metric = AXES[self.axis.value], self.metric.value
        try:
            figure = figures.loss_against(self.rows(), x=x, y=metric)
            panel = figure_panel(figure, figures.LABELS.get(metric, metric), x)
            self.panels.panels, self.message.value = [panel], ""
        except ValueError as error:  # choices that do not fit together
            self.panels.panels, self.message.value = [], say(html.escape(str(error)))
