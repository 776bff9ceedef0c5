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
from dataclasses import dataclass, fields
from typing import Any

from gqc.schedules import interpolate
from gqc_lab.loop.controls import Choice, Control, Points, Spec

CURVES = ("cosine", "linear", "polynomial", "constant", "points")


@dataclass(frozen=True)
class NormSchedule:
    """One plan; the fields are also the names of the controls that make it.

    Args:
        start_norm, end_norm: a and b [loss / parameter], 0 <= b <= a; "constant" stays at a.
        norm_warmup_multiplier: m, first threshold / a, >= 0.
        norm_warmup_microbatches: W, at most the run's length.
        norm_curve: one of `CURVES`; "points" has no warmup of its own.
        norm_exponent: p of "polynomial", > 0.
        norm_points: of "points": (share of the run, norm), shares increasing; may rise.
    Raises: ValueError: values that do not fit each other.
    """

    start_norm: float
    end_norm: float
    norm_warmup_multiplier: float = 1.0
    norm_warmup_microbatches: int = 0
    norm_curve: str = "cosine"
    norm_exponent: float = 1.0
    norm_points: tuple[tuple[float, float], ...] = ()

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
        """The norm threshold of microbatch ``step``, counted from 0, of ``total``."""
        if self.norm_curve == "points":
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


NAMES = tuple(field.name for field in fields(NormSchedule))


def norm_schedule(controls: Mapping[str, Any]) -> NormSchedule:
    """The plan that ``controls`` describe; other controls are left out.

    Raises: ValueError: values that do not fit each other.
    """
    return NormSchedule(**{name: controls[name] for name in NAMES})


def has_norm_schedule(controls: Mapping[str, Any]) -> bool:
    """Do ``controls`` hold all that makes a plan?"""
    return all(name in controls for name in NAMES)


def norm_controls(plan: NormSchedule, total: int) -> dict[str, Spec]:
    """The controls that change ``plan`` while a run of ``total`` microbatches goes on."""
    return {
        "start_norm": Control(plan.start_norm, doc="norm threshold after warmup [loss/parameter]"),
        "end_norm": Control(plan.end_norm, doc="norm threshold at the end [loss/parameter]"),
        "norm_warmup_multiplier": Control(
            plan.norm_warmup_multiplier, doc="first threshold / start_norm"
        ),
        "norm_warmup_microbatches": Control(
            plan.norm_warmup_microbatches, high=total, is_integer=True, doc="length of norm warmup"
        ),
        "norm_curve": Choice(plan.norm_curve, CURVES, doc="shape of the norm threshold"),
        "norm_exponent": Control(
            plan.norm_exponent, low=0.01, high=100.0, doc="exponent of the polynomial"
        ),
        "norm_points": Points(plan.norm_points, doc="(share of the run, norm threshold)"),
    }
