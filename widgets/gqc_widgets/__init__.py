"""Views that steer a training from a notebook while it runs, on top of :mod:`gqc_lab`.

`Live` watches and steers an ordinary loop, or an experiment (`LiveRun`).  `NormScheduleEditor`
edits its norm threshold and `VGSAlphaTuner` its variance scaler, before the run and during it.
`live_callback` gives the same to trainers.  `Compare` draws saved runs.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from gqc_lab import lazy

if TYPE_CHECKING:
    from gqc_widgets.alpha_tuner import VGSAlphaTuner
    from gqc_widgets.callbacks import live_callback
    from gqc_widgets.compare import Compare
    from gqc_widgets.live import Live, LiveRun
    from gqc_widgets.schedule_editor import NormScheduleEditor

__all__ = ["Compare", "Live", "LiveRun", "NormScheduleEditor", "VGSAlphaTuner", "live_callback"]

if "google.colab" in sys.modules:  # its kernel imports it before any cell runs
    importlib.import_module("google.colab.output").enable_custom_widget_manager()


__getattr__ = lazy(__name__, "live", "schedule_editor", "alpha_tuner", "compare", "callbacks")


def __dir__() -> list[str]:
    return __all__  # completion lists the views although they are loaded on first use
