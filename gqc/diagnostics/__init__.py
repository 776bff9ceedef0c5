r"""What a stream of gradients looks like: angles, cosines, norms against draws, noise per tensor.

A microbatch gradient is :math:`g_i = G + \epsilon_i`, :math:`\mathrm{Cov}\,\epsilon=\Sigma`, and
:math:`R=\mathrm{tr}\,\Sigma/\|G\|^2` its noise scale (:mod:`gqc.noise`).  Nothing here changes a
gradient or decides a step.

Read a microbatch's gradient between ``backward()`` and ``step()`` of a wrapper that has
``accumulate="buffer"`` (with ``"grad"`` the sum of the window is in ``.grad``), :math:`G_n` in a
step-pre-hook of the wrapped optimizer.
"""

from gqc.diagnostics.angles import cosine, expected_momentum_angle, momentum_angle
from gqc.diagnostics.correlation import DrawCorrelation
from gqc.diagnostics.streams import ConsecutiveCosine, NoisePerTensor, RunningNorm, expected_norm

__all__ = [
    "ConsecutiveCosine",
    "DrawCorrelation",
    "NoisePerTensor",
    "RunningNorm",
    "cosine",
    "expected_momentum_angle",
    "expected_norm",
    "momentum_angle",
]
