"""Values that may be changed while an experiment runs, from any thread; a norm schedule of them.

An assignment is checked at once and applied at the start of the next microbatch, so that a record
is never made under two values.  What was applied is what the experiment writes into its history.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gqc_lab.errors import check_name
from gqc_lab.loop.settings import Pairs, Setting, control, read_pairs, setting, settings_of

Change = dict[str, Any]
CURVES = ("cosine", "linear", "polynomial", "constant", "points")
NORM = "[loss/parameter]"


class Controls(Mapping[str, Any]):
    """Mapping of control names to values that checks what is assigned.

    Reading gives the value last set; the experiment works with `applied`, which follows at the next
    microbatch.

    Args:
        specs: name -> what it may be, and where it starts.
        check_together: called with all values; raises ValueError where they do not fit each other.
    Attributes:
        applied: the values that the experiment works with.
        changes: what `advance` applied: microbatch, name, value.
        planned: what `replay` asks for, by microbatch.
        wished: names that were set since the last `advance`.
    """

    def __init__(
        self,
        specs: Mapping[str, Setting],
        check_together: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> None:
        self.specs = dict(specs)
        self._check_together = check_together
        self._lock = threading.Lock()
        self._values = {name: spec.check(name, spec.default) for name, spec in specs.items()}
        if check_together is not None:
            check_together(self._values)
        self.applied: dict[str, Any] = dict(self._values)
        self.changes: list[Change] = []
        self.planned: dict[int, dict[str, Any]] = {}
        self.wished: set[str] = set()

    def add(self, name: str, spec: Setting) -> None:
        """Add a control.  Raises: ValueError: its name is taken, or its default not allowed."""
        if name in self.specs:
            raise ValueError(f"control={name!r}: expected a new name; that one is taken")
        value = spec.check(name, spec.default)
        with self._lock:
            self._values = {**self._values, name: value}
            self.applied = {**self.applied, name: value}
            self.specs = {**self.specs, name: spec}  # last, and new: views read it meanwhile

    @property
    def chosen(self) -> dict[str, Any]:
        """The values that somebody has set; others are as at first, or a schedule's."""
        with self._lock:
            return {n: self[n] for n in self.wished.union(c["name"] for c in self.changes)}

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

        Raises: ValueError: unknown name, value out of range, or values that do not fit each other.
        """
        changes = {**(values or {}), **more}
        with self._lock:
            self._values = self.check(self._values, changes)
            self.wished |= changes.keys()

    def check(self, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``values`` with ``changes``, checked; nothing is set."""
        for name in changes:
            check_name("control", name, self.specs)
        checked = {name: self.specs[name].check(name, value) for name, value in changes.items()}
        result = {**values, **checked}
        if self._check_together is not None:
            self._check_together(result)
        return result

    def follow(self, values: Mapping[str, Any]) -> None:
        """Show values that somebody else wrote, such as a schedule; no change is recorded.

        What was set and is not applied yet stays, and differs from what is applied.
        """
        with self._lock:
            shown = {k: v for k, v in values.items() if k not in self.wished}
            self._values, self.applied = {**self._values, **shown}, {**self.applied, **values}

    def replay(self, changes: Iterable[Change], done: int = 0) -> None:
        """Repeat the `changes` of another run, at the microbatches where they were applied.

        Raises: ValueError: a change is refused, or its microbatch is among the ``done``.
        """
        planned = by_microbatch(changes)
        values: dict[str, Any] = dict(self)
        for number in sorted(planned):
            if not number > done:
                raise ValueError(
                    f"change of microbatch {number}: expected one after {done}, which is done"
                )
            values = self.check(values, planned[number])
        self.planned = planned

    def advance(self, number: int) -> dict[str, Any]:
        """Apply what was set or planned for microbatch ``number``, record it, and return it."""
        planned = self.planned.pop(number, {})
        if not planned and not self.wished:
            return {}
        self.update(planned)
        with self._lock:
            before, self.applied, self.wished = self.applied, dict(self._values), set()
            changes = {k: v for k, v in self.applied.items() if v != before[k] or k in planned}
        self.changes += listed({number: changes})
        return changes

    def state_dict(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            return {"values": dict(self._values), "applied": dict(self.applied)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        values = self.check(self._values, state["values"])
        applied = self.check(self.applied, state["applied"])
        with self._lock:
            self._values, self.applied = values, applied
            self.wished = {name for name, value in values.items() if value != applied[name]}


def by_microbatch(changes: Iterable[Change]) -> dict[int, dict[str, Any]]:
    """Return `Controls.changes` as name -> value by microbatch.  Raises: ValueError: it is none."""
    together: dict[int, dict[str, Any]] = {}
    for change in changes:
        match change:
            case {"microbatch": int() | float() as n, "name": name, "value": value} if n % 1 == 0:
                together.setdefault(int(n), {})[name] = value
            case _:
                what = "expected name, value and microbatch, a whole number"
                raise ValueError(f"change={change!r}: {what}")
    return together


def listed(changes: Mapping[int, Mapping[str, Any]]) -> list[Change]:
    """Return the inverse of `by_microbatch`."""
    return [
        {"microbatch": number, "name": name, "value": value}
        for number, together in changes.items()
        for name, value in together.items()
    ]


@dataclass(frozen=True)
class NormSchedule:
    r"""Norm threshold of every microbatch; the fields are also the names of its live controls.

    With W warmup and T microbatches in all, start a, end b, multiplier m and
    :math:`x = (t - W)/(T - W)`: :math:`am + (a - am)\,t/W` while :math:`t < W`, then

    .. math:: \tau = b + (a - b)\,s(x),\quad s = \tfrac12(1 + \cos\pi x),\; 1 - x,\; (1 - x)^p,\; 1

    for cosine, linear, polynomial and constant, then level.  Points are joined by straight lines,
    without a warmup.

    Source: the cosine is :func:`gqc.schedules.get_norm_threshold_cosine_annealing_with_warmup`.

    Raises: ValueError: no points, or ``end_norm`` above ``start_norm``: only points may rise.
    """

    start_norm: float = setting(
        meaning=f"norm threshold after warmup {NORM}", label="start norm", low=0
    )
    end_norm: float = setting(meaning=f"norm threshold at the end {NORM}", label="end norm", low=0)
    norm_warmup_multiplier: float = setting(
        1.0, "first threshold / start_norm", label="first / start norm", low=0
    )
    norm_warmup_microbatches: int = setting(
        0, "length of norm warmup", label="warmup", unit="microbatches", low=0
    )
    norm_curve: str = setting(
        "cosine", "shape of the norm threshold", label="curve", choices=CURVES
    )
    norm_exponent: float = setting(
        1.0, "exponent of the polynomial", label="exponent", above=0, high=100
    )
    norm_points: Pairs = setting(
        (), "(share of the run, norm threshold)", label="points: share norm, ...", read=read_pairs
    )

    def __post_init__(self) -> None:
        if self.norm_curve == "points":
            if not self.norm_points:
                raise ValueError("norm_points=(): expected at least one (share, norm) to join")
        elif self.norm_curve != "constant" and not self.end_norm <= self.start_norm:
            raise ValueError(
                f"end_norm={self.end_norm:g}: expected at most start_norm={self.start_norm:g}; "
                "a threshold that rises is drawn with norm_curve='points'"
            )

    def threshold(self, step: float, total: int) -> float:
        """Return the norm threshold of microbatch ``step``, counted from 0, of ``total``."""
        if self.norm_curve == "points":
            from gqc.schedules import interpolate  # torch is imported only to train

            return interpolate(self.norm_points, step / total)
        a, b, warmup = self.start_norm, self.end_norm, self.norm_warmup_microbatches
        if step < warmup:
            first = a * self.norm_warmup_multiplier
            return first + (a - first) * step / warmup
        if self.norm_curve == "constant":
            return a
        x = min((step - warmup) / (total - warmup), 1.0) if total > warmup else 1.0
        cosine, linear = 0.5 * (1 + math.cos(math.pi * x)), 1 - x
        shapes = {"cosine": cosine, "linear": linear, "polynomial": linear**self.norm_exponent}
        return b + (a - b) * shapes[self.norm_curve]


NORM_SETTINGS = settings_of(NormSchedule)
NORM_NAMES = tuple(NORM_SETTINGS)


def norm_schedule(controls: Mapping[str, Any]) -> NormSchedule:
    """Return the schedule that ``controls`` describe; other controls are left out."""
    return NormSchedule(**{name: controls[name] for name in NORM_NAMES})


def norm_controls(schedule: NormSchedule, total: int) -> dict[str, Setting]:
    """Return the controls that change ``schedule`` during a run of ``total`` microbatches."""
    warmup = "norm_warmup_microbatches"
    controls = {name: control(schedule, name) for name in NORM_NAMES}
    return controls | {warmup: control(schedule, warmup, high=total)}
