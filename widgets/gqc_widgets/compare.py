"""The view of saved runs: what is drawn against what, how smooth, told apart by what."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from gqc_lab.runs import Runs
from gqc_widgets.comparison import Comparison
from gqc_widgets.live_figure import LiveFigure


class Compare(widgets.VBox):
    """Draw the finished runs of a store; see `Comparison` for the arguments and what they raise."""

    def __init__(
        self, store: Path | str | Runs = "runs", where: str | Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(layout=widgets.Layout(width="100%"))
        self.model = Comparison(store, where)
        metrics = self.model.metrics
        first = "val_loss" if "val_loss" in metrics else metrics[0]
        self.metric = widgets.Dropdown(options=metrics, value=first, description="metric")
        self.axis = widgets.Dropdown(options=self.model.axes, description="against")
        self.group = widgets.Dropdown(options=self.model.groups, description="grouped by")
        self.smoothing = widgets.IntSlider(
            1, min=1, max=200, description="smoothing", tooltip="records averaged, about"
        )
        self.message = widgets.HTML()
        choices = [self.metric, self.axis, self.group, self.smoothing]
        for choice in choices:
            choice.layout.width, choice.style.description_width = "240px", "initial"
            choice.observe(lambda _: self._draw(), "value")
        self._top = widgets.HBox(choices, layout=widgets.Layout(flex_flow="row wrap"))
        self.add_class("gqc-compare")
        self._draw()

    def _draw(self) -> None:
        try:
            figure = self.model.figure(
                self.metric.value, self.axis.value, self.group.value, self.smoothing.value
            )
        except ValueError as error:  # choices that do not go together
            self.message.value = f"<div class='gqc-error'>{html.escape(str(error))}</div>"
            self.children = [self._top, self.message]
            return
        self.message.value = ""
        self.figure = LiveFigure(figure)
        self.children = [self._top, self.message, self.figure]
