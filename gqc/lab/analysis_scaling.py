r"""Power laws with a floor that is not known: :math:`y = a\,x^{-b} + c`.

`gqc.lab.analysis.power_law` takes the floor as given, and its interval of the exponent is then too
narrow if the floor is a guess: over a factor of a hundred in ``x``, floors that fit equally well
move the exponent by half.  Here the floor is fitted, and the interval pays for it.

Source: Bates & Watts 1988, "Nonlinear regression analysis and its applications", chapter 6 (profile
intervals); the law is that of Hoffmann et al. 2022, arXiv:2203.15556.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from gqc.lab.analysis import Floats

EXPONENTS = (1e-3, 10.0)  #: searched between


@dataclass(frozen=True)
class FlooredPowerLaw:
    r""":math:`y = a\,x^{-b} + c` with the interval of the exponent :math:`b`.

    ``low`` is 0 or ``high`` is infinite where the data do not bound the exponent on that side.
    """

    coefficient: float
    exponent: float
    low: float
    high: float
    floor: float
    relative_error: float  # standard deviation of y about the curve, as a share of y
    n: int

    def __call__(self, x: ArrayLike) -> Floats:
        """The curve at ``x``."""
        return self.coefficient * np.asarray(x, dtype=float) ** -self.exponent + self.floor


def floored_power_law(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> FlooredPowerLaw:
    r"""Least squares of :math:`(a\,x^{-b} + c)/y - 1` with :math:`a, c \ge 0`.

    For a given exponent it is linear in :math:`a` and :math:`c`; the exponent is searched.  Its
    interval holds every :math:`b` with :math:`S(b) \le S_{min}(1 + F_{1,n-3}/(n-3))`, where
    :math:`S(b)` is the least sum of squares at that exponent.  It assumes independent errors of
    equal relative size; points along one training curve are not independent.

    Args:
        x: > 0, such as tokens.
        y: > 0, such as loss [nat].
    Raises: ValueError: fewer than four distinct ``x``, or a value that is not > 0.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: expected in (0, 1), such as 0.95")
    if x.shape != y.shape or x.ndim != 1 or len(np.unique(x)) < 4:
        raise ValueError(
            f"floored_power_law: shapes {x.shape}, {y.shape}; expected vectors, 4 distinct x"
        )
    if not ((x > 0).all() and (y > 0).all() and np.isfinite([x, y]).all()):
        raise ValueError("floored_power_law: expected finite x > 0 and y > 0")
    scaled = x / np.exp(np.log(x).mean())  # else x to the power of -b under- or overflows

    def cost(log_b: float) -> float:
        return _fit(scaled, y, np.exp(log_b))[2]

    grid = np.linspace(np.log(EXPONENTS[0]), np.log(EXPONENTS[1]), 400)
    costs = np.array([cost(each) for each in grid])
    k = int(costs.argmin())
    around = grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)]
    best = float(optimize.minimize_scalar(cost, bounds=around, method="bounded").x)
    best = min(best, float(grid[k]), key=cost)
    b, (a, c, least) = float(np.exp(best)), _fit(scaled, y, np.exp(best))
    freedom = len(x) - 3
    limit = least * (1 + float(stats.f.ppf(confidence, 1, freedom)) / freedom)
    low, high = _bound(cost, best, grid[0], limit), _bound(cost, best, grid[-1], limit)
    return FlooredPowerLaw(
        coefficient=a * float(np.exp(b * np.log(x).mean())),
        exponent=b,
        low=0.0 if low is None else low,
        high=inf if high is None else high,
        floor=c,
        relative_error=float(np.sqrt(least / freedom)),
        n=len(x),
    )


def _fit(x: Floats, y: Floats, b: float) -> tuple[float, float, float]:
    """The best a and c, both >= 0, for the exponent b, and their sum of squares."""
    u, v = x**-b / y, 1 / y
    (a, c), *_ = np.linalg.lstsq(np.column_stack([u, v]), np.ones_like(y), rcond=None)
    if c < 0:
        a, c = u.sum() / (u @ u), 0.0
    elif a < 0:
        a, c = 0.0, v.sum() / (v @ v)
    return float(a), float(c), float(((a * u + c * v - 1) ** 2).sum())


def _bound(cost: Callable[[float], float], best: float, end: float, limit: float) -> float | None:
    """The exponent between ``best`` and ``end`` (logarithms) where the cost passes the limit."""
    inside = best
    for outside in np.linspace(best, end, 200)[1:]:
        if cost(float(outside)) > limit:
            crossing = optimize.brentq(lambda b: cost(b) - limit, inside, float(outside))
            return float(np.exp(crossing))
        inside = float(outside)
    return None
