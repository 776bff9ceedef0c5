"""What a person types into the fields of controls, until it is right.

As soon as all that was edited is right it is set on the controls, which an experiment applies from
its next microbatch; until then they keep the last right values.
"""

from __future__ import annotations

from typing import Any

from gqc_lab.loop.controls import Controls
from gqc_lab.loop.settings import Setting, read_pairs


class Draft:
    """Edits of ``controls``.

    Args:
        controls: an experiment's, or others that no run follows.
    Attributes:
        errors: field -> what is wrong with it; empty when the draft is what the controls are.
    """

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self.errors: dict[str, str] = {}
        self._edits: dict[str, Any] = {}

    def edit(self, name: str, content: Any, **more: Any) -> None:
        """Put ``content``, a text or a value, into the field ``name``, and ``more`` with it."""
        self._edits |= {name: content, **more}
        self.errors, values = {}, {}
        for field, edited in self._edits.items():
            spec = self.controls.specs[field]
            try:
                values[field] = spec.check(field, _read(field, edited, spec))
            except ValueError as error:
                self.errors[field] = str(error)
        if self.errors:
            return
        try:
            self.controls.update(values)
            self._edits = {}
        except ValueError as error:  # they do not fit each other
            self.errors[name] = str(error)

    def text(self, name: str) -> str:
        """The field's content as a text that `edit` reads."""
        value = self._edits.get(name, self.controls[name])
        if isinstance(value, str):
            return value
        if self.controls.specs[name].read is read_pairs:
            return ", ".join(f"{share:g} {height:g}" for share, height in value)
        return f"{value:g}"


def _read(name: str, content: Any, spec: Setting) -> Any:
    """A field's text as a value; a value as it is."""
    if not isinstance(content, str) or spec.choices:
        return content
    if spec.read is read_pairs:
        pairs = [pair.split() for pair in content.replace(";", ",").split(",") if pair.strip()]
        if not pairs:
            raise ValueError(f"{name}: expected pairs such as '0 2, 1 0.5'; the field is empty")
        return [[read_number(name, word) for word in pair] for pair in pairs]
    return read_number(name, content)


def read_number(name: str, text: str) -> float:
    """``text`` as a number.

    Raises: ValueError: it is empty, or none.
    """
    if not text.strip():
        raise ValueError(f"{name}: expected a number; the field is empty")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}={text.strip()!r}: expected a number such as 0.5") from None
