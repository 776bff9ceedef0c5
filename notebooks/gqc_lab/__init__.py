"""Reproducible experiments on top of the core: data, models, the loop, and what drives it::

from gqc_lab import track
from gqc_lab.studies import pretraining

experiment = pretraining.build(pretraining.config("smoke", method="gnts"))
for record in track(experiment):
    ...
experiment.history, experiment.summary()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gqc_lab.loop.controls import Controls
    from gqc_lab.loop.experiment import Experiment
    from gqc_lab.loop.live import Live
    from gqc_lab.loop.settings import Config, Setting, setting
    from gqc_lab.loop.track import track

__all__ = ["Config", "Controls", "Experiment", "Live", "Setting", "setting", "track"]

# Imported when first used: the command line has to start, and to say what is missing, without
# pandas.
_HOMES = dict.fromkeys(("Config", "Setting", "setting"), "settings")
_HOMES |= {"Controls": "controls", "Experiment": "experiment", "Live": "live"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.loop.{_HOMES.get(name, name)}"), name)


def __dir__() -> list[str]:
    return __all__
