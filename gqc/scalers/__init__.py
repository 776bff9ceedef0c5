"""Gradient scalers: how large a gradient should be, given how noisy it is."""

from gqc.scalers.checkpoints import VGSMigrationWarning
from gqc.scalers.vgs import VarianceGradientScaler

__all__ = ["VGSMigrationWarning", "VarianceGradientScaler"]
