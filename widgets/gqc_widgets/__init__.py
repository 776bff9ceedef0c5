"""Views that steer a training from a notebook while it runs, on top of :mod:`gqc_lab`.

`Live` watches and steers an ordinary loop, or an experiment (`LiveRun`).  `NormScheduleEditor`
edits its norm threshold and `VGSAlphaTuner` its variance scaler, before the run and during it.
`live_callback` gives the same to trainers.  `Compare` draws saved runs.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gqc_widgets.alpha_tuner import VGSAlphaTuner
    from gqc_widgets.callbacks import live_callback
    from gqc_widgets.compare import Compare
    from gqc_widgets.live import Live, LiveRun
    from gqc_widgets.schedule_editor import NormScheduleEditor

_MODULES = {
    "Compare": "compare",
    "Live": "live",
    "LiveRun": "live",
    "NormScheduleEditor": "schedule_editor",
    "VGSAlphaTuner": "alpha_tuner",
    "live_callback": "callbacks",
}

__all__ = ["Compare", "Live", "LiveRun", "NormScheduleEditor", "VGSAlphaTuner", "live_callback"]

if "google.colab" in sys.modules:  # its kernel imports it before any cell runs
    importlib.import_module("google.colab.output").enable_custom_widget_manager()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'gqc_widgets' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gqc_widgets.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__  # completion lists the views although they are loaded on first use
