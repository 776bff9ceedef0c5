"""Utility-based perturbed gradient descent: keep what is useful, shake what is not."""

from gqc.upgd.adaptive_upgd import UPGDW, AdaptiveUPGD
from gqc.upgd.upgd import UPGD

__all__ = ["UPGD", "UPGDW", "AdaptiveUPGD"]
