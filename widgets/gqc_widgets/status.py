"""Progress and numbers of a run as text."""

from __future__ import annotations

import math
from typing import Any

from gqc_lab.loop.live import Live

#: key of a record or of the wrapper's statistics -> what it is called
NUMBERS = {
    "microbatch": "microbatches",
    "steps": "steps",
    "loss": "loss",
    "val_loss": "validation loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "gradient_norm_threshold": "norm threshold",
    "num_draws": "draws",
    "noise_scale": "noise / signal",
    "factor": "factor",
    "vgs/normalized_variance": "variance V",
    "vgs/unresolved": "unresolved tensors",
    "num_forced": "forced steps",
    "num_discarded": "discarded",
}


def progress_text(live: Live) -> str:
    """Return how far the run is, how fast, and how long it still takes."""
    run = live.experiment
    unit = "batches" if run.unit == "microbatch" else run.unit
    text = (
        f"{run.done:,} of {run.total:,} {unit}" if run.total < math.inf else f"{run.done:,} {unit}"
    )
    speed, left = live.speed, live.seconds_left
    if speed is not None:
        text += f" · {speed:,.0f} {unit}/s" + (f" · {clock(left)} left" if left is not None else "")
    return text


def clock(seconds: float) -> str:
    """Return ``seconds`` as minutes and seconds, with hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rows(live: Live) -> list[tuple[str, str]]:
    """Return the present numbers of the run as (label, value), in a fixed order."""
    run = live.experiment
    last = {name: run.column(name, -1) for name in run.column_names}
    values = {**live.statistics, **{name: column[0] for name, column in last.items() if column}}
    validation = live.curves.points("val_loss")[1]
    values["val_loss"] = float(validation[-1]) if len(validation) else None
    return [(label, _text(key, values[key])) for key, label in NUMBERS.items() if key in values]


def _text(key: str, value: Any) -> str:
    is_nan = isinstance(value, float) and math.isnan(value)
    if value is None or (is_nan and key != "loss"):  # what a resumed history has in place of None
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{float(value):.4g}"
