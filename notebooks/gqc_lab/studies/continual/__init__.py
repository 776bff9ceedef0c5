"""Continual learning: streams of image tasks, and what protects the ability to learn."""

from typing import TYPE_CHECKING

from gqc_lab import lazy

if TYPE_CHECKING:
    from gqc_lab.studies.continual.settings import ContinualConfig, comparison, config
    from gqc_lab.studies.continual.training import Continual, build

__all__ = ["Continual", "ContinualConfig", "build", "comparison", "config"]
__getattr__ = lazy(__name__, "settings", "training")
