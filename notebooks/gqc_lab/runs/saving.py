"""What a notebook calls in its last cell; inside a batch it leaves the numbers in the store."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqc_lab.runs.store import HISTORY, RESULT

if TYPE_CHECKING:
    import pandas as pd


def current_run_dir() -> Path | None:
    """The folder of the run that this process executes, or None outside a batch."""
    folder = os.environ.get("GQC_RUN_DIR")
    return Path(folder) if folder else None


def save(
    history: pd.DataFrame | None,
    results: pd.DataFrame | list[dict[str, Any]] | dict[str, Any],
    **info: Any,
) -> pd.DataFrame:
    """Save a run's numbers; outside a batch, only return them as a frame.

    Args:
        history: a tidy frame, one row per record, or None.
        results: one row per thing that was measured, e.g. {"method": "gnts", "val_loss": 1.9}.
        info: plain values for the record, such as ``data_hash``.
    Returns: ``results`` as a frame, to show.
    Raises: TypeError: a result or info value is not a number, text, flag, None or list of such.
    """
    import pandas as pd

    frame = pd.DataFrame([results] if isinstance(results, dict) else results)
    folder = current_run_dir()
    if folder is None:
        return frame
    content = {
        "results": [_plain_row(row) for row in frame.to_dict(orient="records")],
        "info": _plain_row(info),
    }
    if history is not None:
        temporary = folder / f".{HISTORY}"
        history.to_parquet(temporary, index=False)
        os.replace(temporary, folder / HISTORY)
    temporary = folder / f".{RESULT}"
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, folder / RESULT)
    return frame


def _plain_row(row: dict[Any, Any]) -> dict[str, Any]:
    return {str(name): _plain(str(name), value) for name, value in row.items()}


def _plain(name: str, value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()  # a numpy scalar or a tensor of one element
    if isinstance(value, (list, tuple)):
        return [_plain(name, element) for element in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{name}={value!r}: expected a number, text, flag, None or list of them, "
        f"got {type(value).__name__}"
    )
