"""Pretraining a small GPT on text: gradient quality control against AdamW at equal tokens."""

from gqc_lab.studies.pretraining.methods import CONTROLLERS
from gqc_lab.studies.pretraining.settings import PretrainingConfig, config
from gqc_lab.studies.pretraining.training import (
    Pretraining,
    build,
    recorded_draws,
    replay_config,
)

__all__ = [
    "CONTROLLERS",
    "Pretraining",
    "PretrainingConfig",
    "build",
    "config",
    "recorded_draws",
    "replay_config",
]
