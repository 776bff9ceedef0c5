"""Views that steer a training from a notebook while it runs, on top of :mod:`gqc_lab`.

`LiveRun` trains an experiment in a thread.  `NormScheduleEditor` edits its norm threshold and
`VGSAlphaTuner` its variance scaler, before the run and during it.  `Compare` draws saved runs.
"""

from __future__ import annotations

import importlib
from typing import Any

from gqc_widgets.jupyter import enable_custom_widgets

_MODULES = {
    "Compare": "compare",
    "LiveRun": "live_run",
    "NormScheduleEditor": "schedule_editor",
    "VGSAlphaTuner": "alpha_tuner",
}

__all__ = ["Compare", "LiveRun", "NormScheduleEditor", "VGSAlphaTuner"]

enable_custom_widgets()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'gqc_widgets' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gqc_widgets.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__  # completion lists the views although they are loaded on first use
