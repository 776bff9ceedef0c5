"""Reproducible experiments on top of the core: data, models, the loop, and what drives it.

For example::

    from gqc_lab import track
    from gqc_lab.studies import pretraining

    experiment = pretraining.build(pretraining.config("smoke", method="gnts"))
    for record in track(experiment):
        ...
    experiment.history, experiment.summary()
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gqc_lab.loop.controls import Controls
    from gqc_lab.loop.experiment import Experiment
    from gqc_lab.loop.live import Live
    from gqc_lab.loop.settings import Config, Setting, setting
    from gqc_lab.loop.track import track

__all__ = ["Config", "Controls", "Experiment", "Live", "Setting", "setting", "track"]


def lazy(package: str, *modules: str) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``, which imports a name of ``__all__`` when it is used.

    Settings and the command line have to work without waiting for torch or pandas.

    Args:
        modules: of the package, in which the name is looked for in this order.
    """

    def find(name: str) -> Any:
        if name in sys.modules[package].__all__:
            for module in modules:
                if hasattr(found := import_module(f"{package}.{module}"), name):
                    return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


__getattr__ = lazy(
    __name__, "loop.settings", "loop.controls", "loop.experiment", "loop.live", "loop.track"
)


def __dir__() -> list[str]:
    return __all__
