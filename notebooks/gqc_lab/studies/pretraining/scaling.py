r"""Loss against token budget: one whole run per budget, and a power law through their ends.

Each budget is a run of its own, whose learning rate decays to its end: points along one curve are
neither independent nor finished.  :math:`L = a\,D^{-b} + c` has three unknowns, and few budgets do
not separate :math:`b` from the floor :math:`c`: both the law without a floor and the one with the
best floor are given.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gqc_lab.errors import check_name
from gqc_lab.stats.analysis import PowerLaw, check_columns, power_law
from gqc_lab.studies.pretraining.settings import PretrainingConfig, config

#: scale -> token budgets
BUDGETS = {
    "smoke": [2**12, 2**13, 2**14, 2**15],
    "laptop": [2**15, 2**16, 2**17, 2**18, 2**19],
    "paper": [10_000_000, 30_000_000, 90_000_000, 282_000_000],
}
FLOORS = 400  #: tried between 0 and the least loss
SHOWN = ("exponent", "low", "high", "coefficient", "floor", "r_squared")  #: of a law, in `fits`


def budgets(
    scale: str, methods: Sequence[str], tokens: Sequence[int] | None = None, **overrides: Any
) -> list[PretrainingConfig]:
    """Return a config for each method and budget, evaluated at its end alone.

    Args:
        tokens: the budgets; None: those of the scale.
    Raises: ValueError: fewer than three different budgets, or a bad value.
    """
    if tokens is None:
        check_name("scale", scale, BUDGETS)
        tokens = BUDGETS[scale]
    if len(set(tokens)) < 3:
        raise ValueError(f"tokens={list(tokens)}: expected three different budgets or more")
    return [
        config(scale, **{**overrides, "method": m, "tokens": t, "evaluation_tokens": t})
        for m in methods
        for t in tokens
    ]


def best_floor(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Return the power law with the best of `FLOORS` floors from 0 to the least ``y``.

    Best is the least sum of squared differences of ``y`` itself: logarithms of a difference that
    nearly vanishes would decide otherwise.
    """
    floors = np.linspace(0, min(y), FLOORS, endpoint=False)
    laws = [power_law(x, y, floor) for floor in floors]
    errors = [float(np.square(law(x) - np.asarray(y)).sum()) for law in laws]
    return laws[int(np.argmin(errors))]


def fits(results: pd.DataFrame) -> pd.DataFrame:
    """Return the two power laws of each method and seed.

    Returns: a row per method, seed and ``floor_kind`` ("zero" or "fitted"): ``exponent``, ``low``,
        ``high`` (its t interval over budgets, with the floor taken as known), ``coefficient``,
        ``floor``, ``r_squared``, ``budgets``.
    """
    check_columns("fits", results, ["method", "seed", "tokens", "val_loss"])
    rows = []
    for (method, seed), runs in results.groupby(["method", "seed"], sort=False):
        x, y = runs["tokens"].tolist(), runs["val_loss"].tolist()
        for kind, law in (("zero", power_law(x, y)), ("fitted", best_floor(x, y))):
            known = {"method": method, "seed": seed, "floor_kind": kind}
            shown = {name: getattr(law, name) for name in SHOWN}
            rows.append({**known, **shown, "budgets": law.n})
    return pd.DataFrame(rows)
