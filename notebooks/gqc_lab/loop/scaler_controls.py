r"""Settings of a variance gradient scaler, as live controls, and what other values would have done.

The controls have the names of :class:`~gqc.scalers.VarianceGradientScaler`'s arguments.  All act on
the next gradient, but a change of ``beta`` restarts the statistics and the warmup.

Since V is read from raw gradients, a record of V tells what another law would have made of it:

.. math:: f_i = \mathrm{clip}(1/(1+\alpha\min(V_{i-1}, V_\max)), f_\min, 1),

and 1 in the warmup.  The training that would have followed is not known.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gqc_lab.loop.settings import Setting

if TYPE_CHECKING:
    from gqc.scalers import VarianceGradientScaler

#: argument of the scaler -> what it may be; as a control, a variance cap of 0 means none
SCALER = {
    "alpha": Setting(
        meaning="strength of the scaling; 0 measures, scales nothing", label="alpha", low=0
    ),
    "beta": Setting(
        meaning="decay of the statistics; a change restarts them and the warmup",
        label="beta",
        above=0,
        below=1,
    ),
    "warmup_steps": Setting(
        meaning="steps with factor 1", kind=int, low=0, label="warmup", unit="steps"
    ),
    "percentile": Setting(
        meaning="percentile of the variance over tensors", label="percentile", low=0, high=1
    ),
    "min_scaling_factor": Setting(
        meaning="smallest factor", label="smallest factor", low=0, high=1
    ),
    "variance_cap": Setting(
        meaning="the variance counts up to this; 0: as far as beta resolves it",
        label="variance cap",
        low=0,
    ),
}
NAMES = tuple(SCALER)
LAW = ("alpha", "warmup_steps", "min_scaling_factor", "variance_cap")  #: what makes V a factor
VARIANCE, COUNT = "vgs/normalized_variance", "vgs/step_count"


def scaler_controls(scaler: "VarianceGradientScaler") -> dict[str, Setting]:
    """Return the controls that change ``scaler`` while it runs."""
    return {n: replace(SCALER[n], default=v) for n, v in scaler_values(scaler).items()}


def scaler_values(scaler: "VarianceGradientScaler") -> dict[str, Any]:
    """Return the values of the controls that ``scaler`` works with."""
    return {name: getattr(scaler, name) or 0 for name in NAMES}


def scaler_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scaler's arguments that ``values`` of the controls mean, and no other controls."""
    found = {name: values[name] for name in NAMES}
    return found | {"variance_cap": found["variance_cap"] or None}


def apply_scaler(scaler: "VarianceGradientScaler", values: Mapping[str, Any]) -> None:
    """Set ``scaler`` to ``values`` of the controls, between two steps."""
    for name, value in scaler_settings(values).items():
        if getattr(scaler, name) == value:
            continue
        if name == "beta":
            state = scaler.state_dict()
            empty = {"config": {**state["config"], "beta": value}, "statistics": {}}
            scaler.load_state_dict({**state, **empty, "step_count": 0})
        else:
            setattr(scaler, name, value)


def scaled_steps(columns: Mapping[str, Any], x: str) -> dict[str, NDArray[np.float64]]:
    """Return the optimizer steps of one run with what their factors were made from.

    Args:
        columns: of the run's history: ``stepped``, ``factor``, `VARIANCE`, `COUNT` and ``x``; of
            equal length or cut to the shortest.
    Returns: a value for each step of ``x``, ``factor`` (the recorded one), ``variance`` (V before
        the step) and ``count`` (steps of the scaler before it).
    Raises: ValueError: a column is missing.
    """
    names = ("stepped", "factor", VARIANCE, COUNT, x)
    if missing := [name for name in names if name not in columns]:
        raise ValueError(f"history without {missing}: expected a run with a variance scaler")
    length = min(len(columns[name]) for name in names)
    stepped = np.asarray(columns["stepped"][:length], dtype=bool)
    values = {n: np.asarray(columns[n][:length], dtype=float) for n in names[1:]}
    before = np.concatenate([[0.0], values[VARIANCE][:-1]])[:length]
    count = values[COUNT] - 1
    before = np.where(count == 0, 0.0, before)  # restarted: what came before is forgotten
    found = {x: values[x], "factor": values["factor"], "variance": before, "count": count}
    return {name: column[stepped] for name, column in found.items()}


def what_if(
    steps: Mapping[str, NDArray[np.float64]], values: Mapping[str, Any]
) -> NDArray[np.float64]:
    """Return the factor at each of `scaled_steps`, had the law been that of ``values`` (of `LAW`).

    Exact where ``percentile`` falls on a tensor or V is below the cap of the record, which holds
    no V above it.
    """
    import torch

    from gqc.scalers.factors import scaling_factor

    law = scaling_factor(
        torch.from_numpy(steps["variance"]),
        values["alpha"],
        values["min_scaling_factor"],
        values["variance_cap"] or None,
    )
    return np.where(steps["count"] >= values["warmup_steps"], law.numpy(), 1.0)
