"""Utility-based perturbed gradient descent: keep what is useful, shake what is not."""

from gqc.upgd.adaptive_upgd import AdaptiveUPGD
from gqc.upgd.upgd import UPGD
from gqc.upgd.upgdw import UPGDW

__all__ = ["UPGD", "UPGDW", "AdaptiveUPGD"]
