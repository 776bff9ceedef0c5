"""What a batch is expected to cost, from the parameters of its runs alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from gqc_lab.errors import BadInput
from gqc_lab.runs.plan import Batch
from gqc_lab.runs.report import find_function


def count_flops(batch: Batch) -> dict[str, float]:
    """Floating-point operations of each run, by id; empty where the batch file has no ``cost``.

    Raises: BadInput: there is no such function, it refuses the parameters of a run, or it returns
        something else than a number > 0.
    """
    if batch.cost is None:
        return {}
    function = find_function("cost: flops", batch.cost.flops)
    return {run.id: _count(function, batch.cost.flops, run.parameters) for run in batch.runs}


def _count(function: Callable[..., Any], name: str, parameters: dict[str, Any]) -> float:
    try:
        flops = function(dict(parameters))
    except ValueError as error:
        raise BadInput(f"cost: {name}: {error}") from None
    if not (isinstance(flops, int | float) and 0 < flops < math.inf):
        raise BadInput(f"cost: {name} returned {flops!r}: expected a number of operations > 0")
    return float(flops)


def describe_cost(batch: Batch, flops: dict[str, float], left: Collection[str], jobs: int) -> str:
    """One line: operations and time of the runs that are left, with ``jobs`` machines at a time."""
    if batch.cost is None:
        return ""
    speed = batch.cost.flops_per_second
    total = sum(flops[key] for key in left)
    longest = max((flops[key] for key in left), default=0.0)
    hours = max(total / min(jobs, max(1, len(left))), longest) / speed / 3600
    return (
        f"cost: {total:.3g} floating-point operations to go, {hours:.3g} h at {speed:.3g} per "
        f"second and run with --jobs {jobs}"
    )
