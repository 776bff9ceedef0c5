r"""The norm threshold over a run: a curve behind an inverted warmup, or points drawn by hand.

With W warmup and T microbatches in all, start a, end b, multiplier m and
:math:`x = (t - W)/(T - W)`: :math:`am + (a - am)\,t/W` while :math:`t < W`, then

.. math:: \tau = b + (a - b)\,s(x), \qquad s = \tfrac12(1 + \cos\pi x),\; 1 - x,\; (1 - x)^p,\; 1

for cosine, linear, polynomial and constant, then level.  Points are joined by straight lines.

Source: the cosine is :func:`gqc.schedules.get_norm_threshold_cosine_annealing_with_warmup`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gqc_lab.loop.settings import Pairs, Setting, control, read_pairs, setting, settings_of

CURVES = ("cosine", "linear", "polynomial", "constant", "points")
NORM = "[loss/parameter]"


@dataclass(frozen=True)
class NormSchedule:
    """Norm threshold of every microbatch; the fields are also the names of its live controls.

    ``end_norm`` is at most ``start_norm``; "constant" stays at ``start_norm``; "points" has no
    warmup of its own and may rise.

    Raises: ValueError: values that do not fit each other.
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
        x = min((step - warmup) / (total - warmup), 1.0) if total > warmup else 1.0
        return b + (a - b) * self._shape(x) if self.norm_curve != "constant" else a

    def _shape(self, x: float) -> float:
        shapes: dict[str, Callable[[float], float]] = {
            "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
            "linear": lambda x: 1 - x,
            "polynomial": lambda x: (1 - x) ** self.norm_exponent,
        }
        return shapes[self.norm_curve](x)


SETTINGS = settings_of(NormSchedule)
NAMES = tuple(SETTINGS)


def norm_schedule(controls: Mapping[str, Any]) -> NormSchedule:
    """Return the schedule that ``controls`` describe; other controls are left out.

    Raises: ValueError: values that do not fit each other.
    """
    return NormSchedule(**{name: controls[name] for name in NAMES})


def norm_controls(schedule: NormSchedule, total: int) -> dict[str, Setting]:
    """Return the controls that change ``schedule`` during a run of ``total`` microbatches."""
    warmup = "norm_warmup_microbatches"
    controls = {name: control(schedule, name) for name in NAMES}
    return controls | {warmup: control(schedule, warmup, high=total)}
