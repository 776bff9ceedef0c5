r"""Curves of a running experiment: records in, at most a few hundred points out, however long.

The experiment keeps every record; these curves are thinned for display only.  Adding a record costs
the same however many came before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

Record = Mapping[str, Any]
XY = tuple[list[float], list[float]]

LIMIT = 600  #: points of a curve
SMOOTHING = 0.95  #: decay of the smoothed loss, an average over about 20 microbatches


class Thinned:
    """The lowest and highest points of equal stretches of a curve; stretches double as it grows.

    Peaks survive, and so do the first and the last point.  Points without a finite y are left out.

    Args:
        limit: largest number of points, >= 8.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        if not limit >= 8:
            raise ValueError(f"limit={limit!r}: expected at least 8 points")
        self._limit = limit
        self._first: tuple[float, float] | None = None
        self._last: tuple[float, float] | None = None
        self._width = 1  # points in a whole stretch
        self._count = 0  # points in the last stretch
        self._stretches: list[list[tuple[float, float]]] = []  # its points of interest, in order

    def add(self, x: float, y: float | None) -> None:
        """Add a point to the right of the others."""
        if y is None or not math.isfinite(y):
            return
        point = (float(x), float(y))
        self._first = self._first or point
        self._last = point
        if self._stretches and self._count < self._width:
            self._stretches[-1] = _extremes([*self._stretches[-1], point])
            self._count += 1
            return
        if len(self._stretches) == (self._limit - 2) // 2:
            pairs = [self._stretches[i : i + 2] for i in range(0, len(self._stretches), 2)]
            self._stretches = [_extremes([p for part in pair for p in part]) for pair in pairs]
            self._count += self._width * (len(pairs[-1]) - 1)
            self._width *= 2
            self.add(*point)
            return
        self._stretches.append([point])
        self._count = 1

    def points(self) -> XY:
        """Return x and y, in order."""
        inner = [p for stretch in self._stretches for p in stretch]
        if self._first is None or self._last is None:
            return [], []
        shown = dict.fromkeys([self._first, *inner, self._last])  # without repetitions
        return [x for x, _ in shown], [y for _, y in shown]


def _extremes(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    low = min(points, key=lambda point: point[1])
    high = max(points, key=lambda point: point[1])
    return sorted({low, high})


#: curves of all records, of steps only, and derived ones; named as in the records
ALWAYS = (
    *("val_loss", "gradient_norm_threshold", "noise_scale", "vgs/normalized_variance"),
    *("vgs/stochastic_var_p10", "vgs/stochastic_var_p50", "vgs/stochastic_var_p90"),
)
AT_STEPS = ("grad_norm", "num_draws", "factor")
MADE = ("loss", "smooth_loss", "forced")


class Curves:
    """The curves of one run by name, made from the records of a `gqc_lab.Experiment`.

    ``loss``, ``smooth_loss`` (its bias-corrected exponential average), ``forced`` (steps with a
    norm above their threshold), the fields `ALWAYS` and, at steps, `AT_STEPS`.  What a run does not
    record stays empty.

    Args:
        x: key of the records on the x axis.
        records: existing ones.
    """

    NAMES = (*MADE, *ALWAYS, *AT_STEPS)

    def __init__(self, x: str, records: Iterable[Record] = ()) -> None:
        self.x = x
        self._curves = {name: Thinned() for name in self.NAMES}
        self._smooth, self._weight = 0.0, 0.0
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Add the next record."""
        x, loss = record[self.x], record["loss"]
        self._put("loss", x, loss)
        if math.isfinite(loss):
            # The sum of the weights so far; dividing by it removes the bias towards 0.
            self._weight += (1 - SMOOTHING) * (1 - self._weight)
            self._smooth += (1 - SMOOTHING) / self._weight * (loss - self._smooth)
            self._put("smooth_loss", x, self._smooth)
        for name in ALWAYS:
            self._put(name, x, record.get(name))
        if record["stepped"]:
            for name in AT_STEPS:
                self._put(name, x, record.get(name))
            norm, threshold = record.get("grad_norm"), record.get("gradient_norm_threshold")
            if norm is not None and threshold is not None and norm > threshold:
                self._put("forced", x, norm)

    def _put(self, name: str, x: float, y: float | None) -> None:
        if y is not None:
            self._curves[name].add(x, float(y))

    def points(self, name: str) -> XY:
        """Return x and y of the curve ``name``."""
        return self._curves[name].points()

    def all(self) -> dict[str, XY]:
        """Return the points of every curve by name."""
        return {name: curve.points() for name, curve in self._curves.items()}
