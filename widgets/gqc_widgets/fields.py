"""Input fields for controls: what was typed, what is wrong with it, and a slider."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ipywidgets as widgets

from gqc_lab.loop.controls import Controls
from gqc_lab.loop.settings import Setting, read_pairs

STYLE = {"description_width": "150px"}
WIDE = widgets.Layout(width="290px")
LEAST, MOST = -3, 1  #: decimal exponents of a slider's ends


class Fields(widgets.VBox):
    """Edit some of ``controls``.

    As soon as everything that was edited is valid it is set on the controls, which an experiment
    applies from its next microbatch.  Until then the fields keep what was typed, and the controls
    their last valid values.

    Args:
        controls: those of an experiment, or others that no run follows.
        labels: control -> label of its field.
        changed: called after each edit.
        slider: a control > 0 that also gets a slider, logarithmic from 0.001 to 10.
        implied: (control, content) -> other edits that come with that one.
    Attributes:
        inputs, errors: control -> its widgets.
        slider: the slider, or None.
        messages: control -> what is wrong with it; empty if the fields show the controls.
    """

    def __init__(
        self,
        controls: Controls,
        labels: Mapping[str, str],
        changed: Callable[[], None] = lambda: None,
        slider: str = "",
        implied: Callable[[str, Any], Mapping[str, Any]] = lambda name, content: {},
    ) -> None:
        super().__init__()
        self._controls, self._changed, self._implied = controls, changed, implied
        self._lock = threading.RLock()  # a person and the thread of a run
        self._is_refreshing = False
        self._edits: dict[str, Any] = {}
        self.messages: dict[str, str] = {}
        self.slid = slider
        self.slider = self._make_slider() if slider else None
        self.inputs = {name: self._make_input(name, label) for name, label in labels.items()}
        self.errors = {name: widgets.HTML() for name in labels}
        self._pairs = {name: [self.inputs[name], self.errors[name]] for name in labels}
        self.show(labels)
        self.refresh()

    def _make_slider(self) -> widgets.FloatLogSlider:
        slider = widgets.FloatLogSlider(
            min=LEAST, max=MOST, step=0.02, description=f"{self.slid} (log)", readout=False,
            style=STYLE, layout=WIDE,
        )  # fmt: skip
        slider.observe(lambda change: self.edit(self.slid, change["new"]), "value")
        return slider

    def _make_input(self, name: str, label: str) -> widgets.Widget:
        spec = self._controls.specs[name]
        common = {"description": label, "tooltip": spec.meaning, "style": STYLE, "layout": WIDE}
        if spec.choices:
            field = widgets.Dropdown(options=spec.choices, **common)
        else:
            kind = widgets.Textarea if spec.read is read_pairs else widgets.Text
            field = kind(continuous_update=False, **common)
        field.observe(lambda change: self.edit(name, change["new"]), "value")
        return field

    def show(self, names: Collection[str]) -> None:
        """Show only the fields ``names``, and the slider."""
        fields = [w for name, pair in self._pairs.items() if name in names for w in pair]
        self.children = [*([self.slider] if self.slider else []), *fields]

    def edit(self, name: str, content: Any) -> None:
        """Put ``content``, a text or a value, into the field ``name``."""
        with self._lock:
            if self._is_refreshing:
                return
            self._edits |= {name: content, **self._implied(name, content)}
            self._set(name)
            self.refresh()
        self._changed()

    def _set(self, latest: str) -> None:
        """Set the controls to what was edited, if all of it is valid."""
        self.messages, values = {}, {}
        for name, content in self._edits.items():
            spec = self._controls.specs[name]
            try:
                values[name] = spec.check(name, _read(name, content, spec))
            except ValueError as error:
                self.messages[name] = str(error)
        if self.messages:
            return
        try:
            self._controls.update(values)
            self._edits = {}
        except ValueError as error:  # the values do not fit together
            self.messages[latest] = str(error)

    def refresh(self) -> None:
        """Show the edits that are pending and the controls as they are now."""
        with self._lock:
            self._is_refreshing, self._shown = True, dict(self._controls)
            for name, field in self.inputs.items():
                value = self._edits.get(name, self._controls[name])
                field.value = _text(value, self._controls.specs[name])
                error = html.escape(self.messages.get(name, ""))
                self.errors[name].value = say(error) if error else ""
            if self.slider is not None:
                value = self._controls[self.slid]
                self.slider.value = min(max(value, 10.0**LEAST), 10.0**MOST)
            self._is_refreshing = False

    def follow(self) -> bool:
        """Show controls that a cell has set since; returns whether there were any."""
        is_behind = self._shown != dict(self._controls)
        if is_behind:
            self.refresh()
        return is_behind


def say(text: str, kind: str = "error") -> str:
    """Return ``text``, which is HTML, in the colour of warnings and of class ``gqc-KIND``."""
    return f"<div class='gqc-{kind}' style='color:#d55e00;line-height:1.3'>{text}</div>"


def read_number(name: str, text: str) -> float:
    """Return ``text`` as a number.

    Raises: ValueError: it is empty or not a number.
    """
    if not text.strip():
        raise ValueError(f"{name}: expected a number; the field is empty")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}={text.strip()!r}: expected a number such as 0.5") from None


def _read(name: str, content: Any, spec: Setting) -> Any:
    """Return the text of a field as a value; a value is returned unchanged."""
    if not isinstance(content, str) or spec.choices:
        return content
    if spec.read is read_pairs:
        pairs = [pair.split() for pair in content.replace(";", ",").split(",") if pair.strip()]
        if not pairs:
            raise ValueError(f"{name}: expected pairs such as '0 2, 1 0.5'; the field is empty")
        return [[read_number(name, word) for word in pair] for pair in pairs]
    return read_number(name, content)


def _text(value: Any, spec: Setting) -> str:
    """Return a value as a text that `_read` reads; a text is returned unchanged."""
    if isinstance(value, str):
        return value
    if spec.read is read_pairs:
        return ", ".join(f"{share:g} {height:g}" for share, height in value)
    return f"{value:g}"
