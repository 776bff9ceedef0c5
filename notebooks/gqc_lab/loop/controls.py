"""Values that may be changed while an experiment runs, from any thread.

An assignment is checked at once and applied at the start of the next microbatch, so that a record
is never made under two values.  What was applied is what the experiment writes into its history.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gqc_lab.errors import check_name


@dataclass(frozen=True)
class Control:
    """One number: where it starts and what it may become.

    Args:
        default: value at the start.
        low, high: bounds, both allowed; ``high`` may be ``math.inf``.
        is_integer: only whole numbers.
        doc: what it does and in which unit, in a few words (a widget's tooltip).
    """

    default: float
    low: float = 0.0
    high: float = math.inf
    is_integer: bool = False
    doc: str = ""

    def check(self, name: str, value: Any) -> float:
        """``value`` as a number.

        Raises:
            ValueError: not a finite number within the bounds.
        """
        kind = "a whole number" if self.is_integer else "a finite number"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_good = is_number and math.isfinite(value) and self.low <= value <= self.high
        if not (is_good and (not self.is_integer or value == int(value))):
            raise ValueError(f"{name}={value!r}: expected {kind} in [{self.low:g}, {self.high:g}]")
        return int(value) if self.is_integer else float(value)


@dataclass(frozen=True)
class Choice:
    """One of a few texts.

    Args:
        default: at the start.
        options: all that are allowed.
        doc: as of `Control`.
    """

    default: str
    options: tuple[str, ...]
    doc: str = ""

    def check(self, name: str, value: Any) -> str:
        """``value``, one of the options.

        Raises:
            ValueError: it is not.
        """
        check_name(name, value, self.options)
        return str(value)


@dataclass(frozen=True)
class Points:
    """A line through (share of the run, value) pairs; none at all is allowed too.

    Args:
        default: at the start.
        doc: as of `Control`.
    """

    default: tuple[tuple[float, float], ...] = ()
    doc: str = ""

    def check(self, name: str, value: Any) -> tuple[tuple[float, float], ...]:
        """``value`` as pairs of numbers.

        Raises:
            ValueError: not pairs, shares outside [0, 1] or not increasing, or values not finite or
                negative.
        """
        share, height = Control(0.0, high=1.0), Control(0.0)
        expected = f"{name}={value!r}: expected pairs (share of the run, value)"
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError(expected)
        points = []
        for pair in value:
            if isinstance(pair, str) or not isinstance(pair, Iterable) or len(both := [*pair]) != 2:
                raise ValueError(expected)
            points.append(
                (share.check(f"{name}: share", both[0]), height.check(f"{name}: value", both[1]))
            )
        for (before, _), (after, _) in pairwise(points):
            if not after > before:
                raise ValueError(f"{name}: shares {before:g}, {after:g}: expected them to increase")
        return tuple(points)


Spec = Control | Choice | Points


class Controls(Mapping[str, Any]):
    """A mapping of control names to their values that checks what is assigned.

    ``controls["lr_scale"] = 0.5`` sets one, ``controls.update(start_norm=2, end_norm=1)`` several
    at once. Reading gives the value last set; the experiment works with `applied`, which follows at
    the next microbatch.

    Args:
        specs: name -> what it may be.
        check_together: called with all values; raises ValueError where they do not fit each other.
    """

    def __init__(
        self,
        specs: Mapping[str, Spec],
        check_together: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> None:
        self.specs = dict(specs)
        self._check_together = check_together
        self._lock = threading.Lock()
        self._values = {name: spec.check(name, spec.default) for name, spec in specs.items()}
        if check_together is not None:
            check_together(self._values)
        self.applied: dict[str, Any] = dict(self._values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shown = {k: f"{v:g}" if isinstance(v, int | float) else v for k, v in self._values.items()}
        return f"Controls({', '.join(f'{k}={v}' for k, v in shown.items())})"

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def update(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Set several at once: all of them, or none where one is wrong.

        Raises:
            ValueError: unknown name, value out of range, or values that do not fit each other.
        """
        changes = {**(values or {}), **more}
        with self._lock:
            self._values = self.check(self._values, changes)

    def check(self, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """``values`` with ``changes``, checked; nothing is set."""
        for name in changes:
            check_name("control", name, self.specs)
        checked = {name: self.specs[name].check(name, value) for name, value in changes.items()}
        result = {**values, **checked}
        if self._check_together is not None:
            self._check_together(result)
        return result

    def apply(self) -> dict[str, Any]:
        """Take over what was set since the last call; returns what differs.  For the experiment."""
        with self._lock:
            changes = {k: v for k, v in self._values.items() if v != self.applied[k]}
            self.applied = dict(self._values)
        return changes

    def state_dict(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            return {"values": dict(self._values), "applied": dict(self.applied)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        values = self.check(self._values, state["values"])
        applied = self.check(self.applied, state["applied"])
        with self._lock:
            self._values, self.applied = values, applied
