"""Input fields for controls: what was typed, what is wrong with it, and a slider."""

import html
import math
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from gqc_lab.errors import check_name
from gqc_lab.loop.controls import Controls
from gqc_lab.loop.settings import Setting, read_pairs

NOTCHES = 200  #: of a slider
DECADES = 4  #: of a logarithmic one
_HERE = Path(__file__).parent


class Fields(anywidget.AnyWidget):
    """Edit some of ``controls``.

    As soon as everything that was edited is valid it is set on the controls, which an experiment
    applies from its next microbatch.  Until then the fields keep what was typed, and the controls
    their last valid values.

    Args:
        controls: those of an experiment, or others that no run follows.
        names: those of ``controls`` that have a field; `add` adds more.
        changed: called after each edit.
        has_sliders: numbers also get one: even between two bounds, else over four decades.
        implied: (control, content) -> other edits that come with that one.
    Attributes:
        messages: control -> what is wrong with it; empty if the fields show the controls.
    """

    _esm = _HERE / "fields.js"
    _css = _HERE / "style.css"
    specs: Any = traitlets.List().tag(sync=True)
    shown: Any = traitlets.List().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        controls: Controls,
        names: Iterable[str] = (),
        changed: Callable[[], None] = lambda: None,
        has_sliders: bool = False,
        implied: Callable[[str, Any], Mapping[str, Any]] = lambda name, content: {},
    ) -> None:
        self._controls, self._changed, self._implied = controls, changed, implied
        self._lock = threading.RLock()  # a person and the thread of a run
        self._edits: dict[str, Any] = {}
        self.messages: dict[str, str] = {}
        self._names: list[str] = []
        self._has_sliders = has_sliders
        self._scales: dict[str, _Scale] = {}
        super().__init__()
        self.add(names)
        self.on_msg(lambda _, content, buffers: self._hear(content))

    def add(self, names: Iterable[str]) -> None:
        """Add fields for those of ``names`` that have none, as where a control is new."""
        with self._lock, self.hold_sync():
            new = [name for name in names if name not in self._names]
            self._names += new
            self.specs = [*self.specs, *map(self._spec, new)]
            self.shown = [*self.shown, *new]
            self.follow()

    def _spec(self, name: str) -> dict[str, Any]:
        spec = self._controls.specs[name]
        found: dict[str, Any] = {"name": name, "label": spec.axis or name, "title": spec.meaning}
        found["is_long"], found["slider"] = spec.read is read_pairs, 0
        if spec.choices:
            found["choices"] = list(spec.choices)
        elif self._has_sliders and spec.kind in (int, float) and not spec.read:
            found["slider"] = NOTCHES
            self._scales[name] = _Scale(spec, self._controls[name])
        return found

    def _hear(self, content: Mapping[str, Any]) -> None:
        if "edit" in content:
            self.edit(*content["edit"])
        elif "slide" in content:
            name, notch = content["slide"]
            self.edit(name, self._scales[name].value(notch))

    def show(self, names: Collection[str]) -> None:
        """Show only the fields ``names``."""
        self.shown = [name for name in self._names if name in names]

    def edit(self, name: str, content: Any) -> None:
        """Put ``content``, a text or a value, into the field ``name``."""
        check_name("field", name, self._names)
        with self._lock:
            self._edits |= {name: content, **self._implied(name, content)}
            self._set(name)
            self.follow()
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

    def follow(self) -> None:
        """Show the edits that are pending and the controls as they are."""
        with self._lock:
            self.values = {name: self._look(name) for name in self._names}

    def _look(self, name: str) -> dict[str, Any]:
        value = self._controls[name]
        return {
            "text": _text(self._edits.get(name, value), self._controls.specs[name]),
            "error": self.messages.get(name, ""),
            "at": self._scales[name].notch(value) if name in self._scales else 0,
        }


class _Scale:
    """The values of a slider's notches."""

    def __init__(self, spec: Setting, value: float) -> None:
        low, high = max(spec.low, spec.above), min(spec.high, spec.below)
        self._is_even = math.isfinite(low) and math.isfinite(high)
        self._kind, self._bounds = spec.kind, (spec.low, spec.high)
        if self._is_even:
            self._low, self._width = low, (high - low) or 1.0
        else:
            middle = round(math.log10(value), 2) if value > 0 else -1.0
            self._low, self._width = middle - DECADES / 2, float(DECADES)

    def value(self, notch: int) -> float:
        place = self._low + self._width * notch / NOTCHES
        number = float(f"{place if self._is_even else 10**place:.4g}")
        number = min(max(number, self._bounds[0]), self._bounds[1])
        return self._kind(round(number)) if self._kind is int else number

    def notch(self, value: float) -> int:
        place = value if self._is_even else math.log10(value) if value > 0 else -math.inf
        share = (place - self._low) / self._width
        return round(NOTCHES * min(max(share, 0.0), 1.0))


def say(text: str, kind: str = "error") -> str:
    """Return ``text``, which is HTML, in the colour of warnings and of class ``gqc-KIND``."""
    return f"<div class='gqc-{kind}'>{text}</div>" if text else ""


def escape(text: str) -> str:
    """Return ``text`` as HTML with its line ends."""
    return f"<span style='white-space:pre-wrap'>{html.escape(text)}</span>"


def read_number(text: str) -> float | str:
    """Return ``text`` as a number, or else as it is: its setting says what is expected."""
    try:
        return float(text)
    except ValueError:
        return text.strip()


def _read(name: str, content: Any, spec: Setting) -> Any:
    """Return the text of a field as a value; a value is returned unchanged."""
    if not isinstance(content, str) or spec.choices or spec.kind is str:
        return content
    if spec.kind is bool:
        flags = {"true": True, "1": True, "false": False, "0": False}
        return flags.get(content.strip().lower(), content)
    if spec.read is read_pairs:
        pairs = [pair.split() for pair in content.replace(";", ",").split(",") if pair.strip()]
        if not pairs:
            raise ValueError(f"{name}: expected pairs such as '0 2, 1 0.5'; the field is empty")
        return [[read_number(word) for word in pair] for pair in pairs]
    return read_number(content)


def _text(value: Any, spec: Setting) -> str:
    """Return a value as a text that `_read` reads; a text is returned unchanged."""
    if isinstance(value, str):
        return value
    if spec.read is read_pairs:
        return ", ".join(f"{share:g} {height:g}" for share, height in value)
    return f"{value:g}" if type(value) is float else str(value)
