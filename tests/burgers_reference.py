r"""Burgers' equation solved exactly: the Cole-Hopf transformation, by quadrature.

With :math:`\epsilon = \nu/\pi`, :math:`F(y) = \int_0^y u_0`, and
:math:`G(y) = F(y)/2\epsilon + (x-y)^2/4\epsilon t`:

.. math:: u(x, t) = \int \frac{x-y}{t} e^{-G(y)} dy \Big/ \int e^{-G(y)} dy .

Both integrands are smooth and positive weights decay like a Gaussian: the trapezoidal rule
converges exponentially, and nothing cancels however small epsilon is.
"""

import math

import numpy as np


def sine_sum(terms, x):
    """u_0 at ``x`` of (amplitude, mode, phase) terms."""
    return sum(a * np.sin(2 * math.pi * n * x + phase) for a, n, phase in terms)


def sine_sum_integral(terms, y):
    """F at ``y``."""
    return sum(
        a * (math.cos(phase) - np.cos(2 * math.pi * n * y + phase)) / (2 * math.pi * n)
        for a, n, phase in terms
    )


def cole_hopf(terms, nu, x, t, spacing=1 / 4096):
    """u at the positions ``x`` and one time t > 0."""
    epsilon = nu / math.pi
    reach = sum(a for a, _, _ in terms) * t + 12 * math.sqrt(2 * epsilon * t)
    offsets = np.arange(-reach, reach + spacing, spacing)
    values = []
    for position in x:
        y = position - offsets
        exponent = sine_sum_integral(terms, y) / (2 * epsilon) + offsets**2 / (4 * epsilon * t)
        weight = np.exp(exponent.min() - exponent)
        values.append((offsets * weight).sum() / (t * weight.sum()))
    return np.array(values)
