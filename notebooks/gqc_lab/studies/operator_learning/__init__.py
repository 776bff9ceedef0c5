"""Learning Burgers' equation in a latent space, with inverse losses weighted in several ways."""

from typing import TYPE_CHECKING

from gqc_lab import lazy

if TYPE_CHECKING:
    from gqc_lab.studies.operator_learning.measures import by_epoch
    from gqc_lab.studies.operator_learning.settings import (
        VARIANTS,
        OperatorLearningConfig,
        config,
        read_training,
        variant_config,
    )
    from gqc_lab.studies.operator_learning.training import PARTS, OperatorLearning, build, is_lost

__all__ = [
    "PARTS", "VARIANTS", "OperatorLearning", "OperatorLearningConfig", "build", "by_epoch",
    "config", "is_lost", "read_training", "variant_config",
]  # fmt: skip
__getattr__ = lazy(__name__, "settings", "measures", "training")
