"""Continual learning: streams of image tasks, and what protects the ability to learn."""

from gqc_lab.studies.continual.settings import ContinualConfig, comparison, config
from gqc_lab.studies.continual.training import Continual, build

__all__ = ["Continual", "ContinualConfig", "build", "comparison", "config"]
