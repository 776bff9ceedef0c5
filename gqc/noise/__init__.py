r"""How noisy is a gradient, and which settings follow from that?

:mod:`gqc.noise.estimates` estimates :math:`|G|^2` and :math:`\mathrm{tr}\,\Sigma` from norms that a
training loop has anyway; :func:`probe` measures them on a model as it is, and turns them into a
batch, a norm threshold and a bound on draws.
"""

from gqc.noise.estimates import (
    NoiseScaleEMA,
    RobustNoiseScaleEMA,
    ema_kappa,
    ema_weight,
    predicted_draws,
    two_batch,
    unequal_two_batch,
)
from gqc.noise.probing import Probe, probe

__all__ = [
    "NoiseScaleEMA", "Probe", "RobustNoiseScaleEMA", "ema_kappa", "ema_weight",
    "predicted_draws", "probe", "two_batch", "unequal_two_batch",
]  # fmt: skip
