"""Columns of a run as arrays that grow, and curves of a few hundred points that a person can read.

The experiment keeps every record; thinning is for display only.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gqc_lab.loop.experiment import Experiment
from gqc_lab.stats.analysis import outline

Array = NDArray[np.float64]
XY = tuple[Array, Array]

LIMIT = 400  #: points of a curve
EMPTY: Array = np.empty(0)
AT_STEPS = ("grad_norm", "num_draws", "factor")  #: drawn for the records that stepped


class Curves:
    """The numbers that ``experiment`` has recorded, by name.

    Beside the recorded names there are ``smooth NAME``, a bias-corrected exponential average over
    about `span` records, and ``forced``: the norms of steps above their threshold.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._arrays: dict[str, Array] = {}
        self._texts: set[str] = set()
        self._length = 0
        self.span = 20.0

    def read(self) -> None:
        """Take in the records since the last call; the last of them is read again."""
        length = self._experiment.microbatch
        if length < self._length:  # reset, or an earlier state was loaded
            self._arrays, self._texts, self._length = {}, set(), 0
        start = max(self._length - 1, 0)
        for name in self._experiment.column_names:
            if name in self._texts:
                continue
            kept = self._arrays.get(name, EMPTY)
            begin = start if len(kept) else 0  # a column that is new may have a past
            try:
                new = np.array(self._experiment.column(name, begin)[: length - begin], dtype=float)
            except (TypeError, ValueError):
                self._texts.add(name)
                continue
            if len(kept) < length:
                more = np.full(max(length, 2 * len(kept), 1024) - len(kept), np.nan)
                kept = self._arrays[name] = np.concatenate([kept, more])
            kept[begin : begin + len(new)] = new
        self._length = length

    @property
    def names(self) -> list[str]:
        """The recorded numbers."""
        return [name for name in list(self._arrays) if name not in ("changes", "stepped")]

    def column(self, name: str) -> Array:
        """Return all values of ``name``, NaN where a record has none."""
        return self._arrays.get(name, EMPTY)[: self._length]

    def points(self, name: str) -> XY:
        """Return x and y of a curve, thinned, with NaN where a stretch has no value."""
        x, y = self.column(self._experiment.unit), self._values(name)
        is_stepped = self.column("stepped")
        length = min(len(x), len(y))  # the training thread may have read more in between
        x, y, is_stepped = x[:length], y[:length], is_stepped[:length]
        if name in AT_STEPS and len(is_stepped):
            x, y = x[is_stepped == 1], y[is_stepped == 1]
        known = np.isfinite(y)
        if name in ("forced", "val_loss") or 2 * known.sum() < len(y):  # evaluated now and then
            return thin(x[known], y[known])
        return thin(x, np.where(known, y, np.nan))

    def _values(self, name: str) -> Array:
        kind, _, base = name.partition(" ")
        if kind == "smooth" and base in self._arrays:
            return smooth(self.column(base), self.span)
        if name == "forced":
            norm, threshold = self.column("grad_norm"), self.column("gradient_norm_threshold")
            stepped = self.column("stepped")
            length = min(len(norm), len(threshold), len(stepped))
            norm, threshold, stepped = norm[:length], threshold[:length], stepped[:length]
            return np.where((norm > threshold) & (stepped == 1), norm, np.nan)
        return self.column(name)


def smooth(values: Array, span: float) -> Array:
    r"""Return :math:`\sum_i d^{n-i} v_i/\sum_i d^{n-i}`, d = 1 - 1/span, over the finite values."""
    finite = pd.Series(np.where(np.isfinite(values), values, np.nan))
    averaged: Any = finite.ewm(alpha=1 / span, ignore_na=True).mean()
    return np.where(finite.isna(), np.nan, averaged)


def thin(x: Array, y: Array, limit: int = LIMIT) -> XY:
    """Keep at most ``limit`` points; see `outline`."""
    kept = outline(y, limit)
    return x[kept], y[kept]
