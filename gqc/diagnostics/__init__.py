r"""What a stream of gradients looks like: angles, expected norms, correlated draws.

A microbatch gradient is :math:`g_i = G + \epsilon_i`, :math:`\mathrm{Cov}\,\epsilon=\Sigma`, and
:math:`R=\mathrm{tr}\,\Sigma/\|G\|^2` its noise scale (:mod:`gqc.noise`).  Nothing here changes a
gradient or decides a step.

Read a microbatch's gradient between ``backward()`` and ``step()`` of a wrapper that has
``accumulate="buffer"`` (with ``"grad"`` the sum of the window is in ``.grad``), :math:`G_n` in a
step-pre-hook of the wrapped optimizer.
"""

from gqc.diagnostics.angles import cosine, expected_momentum_angle, expected_norm, momentum_angle
from gqc.diagnostics.correlation import DrawCorrelation

__all__ = [
    "DrawCorrelation", "cosine", "expected_momentum_angle", "expected_norm", "momentum_angle",
]  # fmt: skip
