"""Fields for the controls of a draft: a text for each, what is wrong with it, and a slider."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from gqc_widgets.draft import Draft

STYLE = {"description_width": "120px"}
WIDE = widgets.Layout(width="290px")
LEAST, MOST = -3, 1  #: decimal exponents of a slider's ends


class Fields(widgets.VBox):
    """Edit ``draft``.

    Args:
        draft: what is typed goes there.
        labels: control -> what is written beside its field.
        changed: called after each edit.
        slider: a control > 0 that also has a slider, logarithmic from 0.001 to 10.
    Attributes:
        texts, errors: control -> its widgets.
        slider: the slider, or None.
    """

    def __init__(
        self,
        draft: Draft,
        labels: Mapping[str, str],
        changed: Callable[[], None],
        slider: str | None = None,
    ) -> None:
        super().__init__()
        self._draft, self._changed = draft, changed
        self._lock = threading.RLock()  # a person and the thread of a run
        self._is_refreshing = False
        self._slid = slider
        self.slider = self._make_slider() if slider else None
        self.texts: dict[str, widgets.Text] = {}
        self.errors: dict[str, widgets.HTML] = {}
        for name, label in labels.items():
            self._make_text(name, label)
        pairs = [w for name in labels for w in (self.texts[name], self.errors[name])]
        self.children = [*([self.slider] if self.slider else []), *pairs]
        self.refresh()

    def _make_slider(self) -> widgets.FloatLogSlider:
        slider = widgets.FloatLogSlider(
            min=LEAST, max=MOST, step=0.02, description=f"{self._slid} (log)", readout=False,
            style=STYLE, layout=WIDE,
        )  # fmt: skip
        slider.observe(lambda change: self._edit(self._slid, change["new"]), "value")
        return slider

    def _make_text(self, name: str, label: str) -> None:
        text = widgets.Text(
            description=label,
            tooltip=self._draft.controls.specs[name].meaning,
            continuous_update=False,
            style=STYLE,
            layout=WIDE,
        )
        text.observe(lambda change: self._edit(name, change["new"]), "value")
        self.texts[name], self.errors[name] = text, widgets.HTML()

    def _edit(self, name: Any, content: str | float) -> None:
        with self._lock:
            if self._is_refreshing:
                return
            self._draft.edit(name, content)
            self.refresh()
        self._changed()

    def refresh(self) -> None:
        """Show what the draft and its controls are now."""
        with self._lock:
            self._is_refreshing, self._shown = True, dict(self._draft.controls)
            for name, text in self.texts.items():
                text.value = self._draft.text(name)
                error = html.escape(self._draft.errors.get(name, ""))
                self.errors[name].value = say(error) if error else ""
            if self.slider is not None and self._slid is not None:
                alpha = self._draft.controls[self._slid]
                self.slider.value = min(max(alpha, 10.0**LEAST), 10.0**MOST)
            self._is_refreshing = False

    def follow(self) -> None:
        """Show a control that a cell has set."""
        if self._shown != dict(self._draft.controls):
            self.refresh()


def say(text: str, kind: str = "error") -> str:
    """``text``, which is HTML, in the colour of warnings, in a block of class ``gqc-KIND``."""
    return f"<div class='gqc-{kind}' style='color:#d55e00;line-height:1.3'>{text}</div>"
