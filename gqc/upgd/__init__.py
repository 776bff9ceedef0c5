"""Utility-based perturbed gradient descent: keep what is useful, shake what is not."""

from gqc.upgd.upgd import UPGD, UPGDW, AdaptiveUPGD

__all__ = ["UPGD", "UPGDW", "AdaptiveUPGD"]
