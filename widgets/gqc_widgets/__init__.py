"""Steer a training from the notebook while it runs: ipywidgets views of :mod:`gqc_lab` objects.

`LiveRun` trains an experiment in a thread; `NormScheduleEditor` edits its norm threshold on the
way, `VGSAlphaTuner` its variance scaler; `Compare` draws saved runs.  The views are thin.  What
they show is computed in :mod:`~gqc_widgets.runner`, :mod:`~gqc_widgets.display`,
:mod:`~gqc_widgets.draft`, :mod:`~gqc_widgets.schedule`, :mod:`~gqc_widgets.scaler`,
:mod:`~gqc_widgets.side_by_side` and :mod:`~gqc_widgets.comparison`, which need no ipywidgets.
"""

from __future__ import annotations

import importlib
from typing import Any

from gqc_widgets.colab import enable_custom_widgets

_VIEWS = {
    "Compare": "compare",
    "LiveRun": "live_run",
    "NormScheduleEditor": "schedule_editor",
    "VGSAlphaTuner": "alpha_tuner",
}

__all__ = ["Compare", "LiveRun", "NormScheduleEditor", "VGSAlphaTuner"]

enable_custom_widgets()


def __getattr__(name: str) -> Any:
    if name not in _VIEWS:
        raise AttributeError(f"module 'gqc_widgets' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gqc_widgets.{_VIEWS[name]}"), name)
