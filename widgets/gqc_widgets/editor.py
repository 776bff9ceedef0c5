"""What the editors of a run have in common: the run they follow, *Export*, and their layout."""

import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import yaml

from gqc_lab import Experiment
from gqc_lab.loop.gate import REPLACED
from gqc_lab.loop.live import Live, steered
from gqc_widgets.fields import Fields, say


class Editor(widgets.VBox):
    """Edit controls of ``run`` while it trains.

    Args:
        run: a `Live`, or an experiment, which gets one if it has none.
    """

    fields: Fields
    _refresh: Callable[[], None]  # shows the run as it is; called from its thread

    def __init__(self, run: Live | Experiment) -> None:
        if isinstance(run, Experiment):
            found = steered.get(run)
            run = Live(run) if found is None or found.state == REPLACED else found
        self.live = run
        self.experiment = self.live.experiment
        super().__init__(layout=widgets.Layout(width="100%"))
        self._drawing = threading.RLock()  # edits and training threads
        self.button = widgets.Button(
            description="Export", icon="code", tooltip="Show the settings as papermill parameters"
        )
        self.text = widgets.Textarea(layout=widgets.Layout(display="none", width="100%"))
        self.button.on_click(lambda _: self._show_export())
        self.banner = widgets.HTML()
        self.add_class("gqc-editor")

    def export(self) -> dict[str, Any]:
        """Return the settings as parameters for papermill, for example to run them as a batch."""
        raise NotImplementedError

    def _show_export(self) -> None:
        self.text.layout.display = ""
        self._refresh_export()

    def _refresh_export(self) -> None:
        if self.text.layout.display == "":
            text = yaml.safe_dump(self.export(), sort_keys=False, default_flow_style=None)
            self.text.value, self.text.rows = text, 1 + text.count("\n")

    def _hear(self, live: Live) -> None:
        with self._drawing:
            if live.state == REPLACED:
                text = "its run was replaced; run this cell again to edit the new one"
                self.banner.value = say(text)
            self.fields.follow()
            self._refresh()

    def close(self) -> None:
        """Take the view off the page; the run continues."""
        if self._hear in self.live.listeners:
            self.live.listeners.remove(self._hear)
        super().close()


def columns(left: list[widgets.Widget], right: list[widgets.Widget]) -> widgets.Box:
    """Return a row of fields and what they act on; below each other where the page is narrow."""
    box = widgets.Box([widgets.VBox(left), widgets.VBox(right)])
    box.add_class("gqc-columns")
    return box


def note(text: str) -> str:
    """Return ``text``, which is HTML, as a note below a figure."""
    return f"<div style='line-height:1.4;padding-left:8px'>{text}</div>"
