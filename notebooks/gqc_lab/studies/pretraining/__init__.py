"""Pretraining a small GPT on text: gradient quality control against AdamW at equal tokens."""

from typing import TYPE_CHECKING

from gqc_lab import lazy

if TYPE_CHECKING:
    from gqc_lab.studies.pretraining.methods import CONTROLLERS, recorded_draws, replay_config
    from gqc_lab.studies.pretraining.settings import PretrainingConfig, config
    from gqc_lab.studies.pretraining.training import Pretraining, build

__all__ = [
    "CONTROLLERS", "Pretraining", "PretrainingConfig", "build", "config", "recorded_draws",
    "replay_config",
]  # fmt: skip
__getattr__ = lazy(__name__, "settings", "methods", "training")
