"""What the editors of a run have in common: the run they follow, *Export*, and their layout."""

from __future__ import annotations

import html
import threading
from typing import Any

import ipywidgets as widgets
import yaml

from gqc_lab import Experiment
from gqc_widgets.live_run import LiveRun
from gqc_widgets.runner import Runner


class Editor(widgets.VBox):
    """Edit controls of ``run`` while it trains.

    Args:
        run: a `LiveRun`, which is then followed while it trains, or an experiment.
    """

    _runner: Runner | None = None

    def __init__(self, run: LiveRun | Experiment) -> None:
        super().__init__(layout=widgets.Layout(width="100%"))
        self.experiment = run.experiment if isinstance(run, LiveRun) else run
        self._runner = run.runner if isinstance(run, LiveRun) else None
        self._drawing = threading.RLock()  # edits and training threads
        self.button = widgets.Button(
            description="Export", icon="code", tooltip="Show the settings as papermill parameters"
        )
        self.button.on_click(lambda _: self._show_export())
        self.text = widgets.HTML()

    def export(self) -> dict[str, Any]:
        """Return the settings as parameters for papermill, for example to run them as a batch."""
        raise NotImplementedError

    def _show_export(self) -> None:
        text = yaml.safe_dump(self.export(), sort_keys=False, default_flow_style=None)
        style = "white-space:pre-wrap;line-height:1.3"
        self.text.value = f"<pre style='{style}'>{html.escape(text)}</pre>"

    def _follow(self, runner: Runner) -> None:
        """Show news of the run; called from its thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Take the view off the page; the run goes on."""
        if self._runner is not None and self._follow in self._runner.listeners:
            self._runner.listeners.remove(self._follow)
        super().close()


def columns(left: list[widgets.Widget], right: list[widgets.Widget]) -> widgets.HBox:
    """Return a row of fields on the left and what they act on, as wide as the page allows."""
    return widgets.HBox(
        [
            widgets.VBox(left, layout=widgets.Layout(width="300px", flex="0 0 300px")),
            widgets.VBox(right, layout=widgets.Layout(flex="1 1 0", min_width="0")),
        ],
        layout=widgets.Layout(width="100%"),
    )


def note(text: str) -> str:
    """Return ``text``, which is HTML, as a note below a figure."""
    return f"<div style='line-height:1.4;padding-left:70px'>{text}</div>"
