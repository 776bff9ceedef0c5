"""A mean that moves and noise that is correlated: what each estimator makes of them."""

from __future__ import annotations

import math

import pytest
import torch
from vgs_reference import (
    bounded_ratio,
    debiased_sums,
    feed,
    iid_noise,
    measure,
    normal,
    variances_of,
)

from gqc.scalers import VarianceGradientScaler

NUMEL = 4096
MEAN = normal(NUMEL, seed=9)


def autoregressive(correlation, ratio, num):
    """Noise with this correlation between successive draws, around a mean; truth ``ratio``."""
    mean, noise, draws = MEAN / MEAN.square().mean().sqrt(), normal(NUMEL, seed=77), []
    for t in range(num):
        new = normal(NUMEL, seed=1000 + t)
        noise = correlation * noise + math.sqrt(1 - correlation**2) * new
        draws.append(mean + math.sqrt(ratio) * noise)
    return lambda t: draws[t].clone()


def falling(scale):
    return lambda t: MEAN * math.exp(-t / scale)


TABLE = {  # stream, number of draws, truth, what "sketch" and "differences" read
    "independent": (iid_noise(NUMEL, 10.0), 1000, 10.0, 10.1, 10.1),
    "exp(-t/500)": (falling(500), 400, 0.0, 0.035, 0.0000),
    "exp(-t/50)": (falling(50), 400, 0.0, 19.6, 0.0037),
    "exp(-t/20)": (falling(20), 400, 0.0, 192.0, 0.116),
    "autocorrelation 0.5": (autoregressive(0.5, 10.0, 1000), 1000, 10.0, 9.0, 4.4),
    "autocorrelation 0.9": (autoregressive(0.9, 10.0, 1000), 1000, 10.0, 5.0, 0.53),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_drift_and_correlation(name):
    """The rows in the docstring of :mod:`gqc.scalers.variance`, as rounded there."""
    stream, num, _, sketch, differences = TABLE[name]
    assert measure(stream, num, estimator="sketch")[0] == pytest.approx(sketch, rel=0.02)
    found, _ = measure(stream, num, estimator="differences")
    assert found == pytest.approx(differences, rel=0.02, abs=5e-5)


def slow(gradients, beta):
    """Half the weighted mean square of differences over the squared mean less its noise."""
    if len(gradients) < 2:
        return 0.0
    pairs = zip(gradients[1:], gradients[:-1], strict=True)
    squares = [(b.double() - a.double()).square().sum().item() / 2 for b, a in pairs]
    weights = [beta ** (len(squares) - 1 - i) for i in range(len(squares))]
    variance = sum(w * s for w, s in zip(weights, squares, strict=True)) / sum(weights)
    spread, signal, kappa = debiased_sums(gradients, beta)  # signal = |m|^2 - kappa spread
    return bounded_ratio(variance, signal + kappa * (spread - variance), 1 / kappa)


@pytest.mark.parametrize("num", [1, 2, 3, 50])
def test_differences_equal_their_formula(num):
    params = [torch.zeros(300, requires_grad=True), torch.zeros(7, requires_grad=True)]
    options = {"alpha": 0.0, "variance_cap": None, "beta": 0.95}
    scaler = VarianceGradientScaler(params, estimator="differences", **options)
    steps = [[1 + normal(300, seed=t), 2 + normal(7, seed=-t - 1)] for t in range(num)]
    for step in steps[1::7]:
        step[1] = None  # a difference is that to the last gradient there was
    feed(scaler, params, steps)
    got = variances_of(scaler).tolist()
    present = [[s[i] for s in steps if s[i] is not None] for i in range(2)]
    assert got == pytest.approx([slow(grads, 0.95) for grads in present], rel=1e-4)


def test_a_gradient_with_nan_is_passed_over():
    params = [torch.zeros(30, requires_grad=True)]
    scaler = VarianceGradientScaler(params, estimator="differences", variance_cap=None)
    steps = [1 + normal(30, seed=t) for t in range(20)]
    bad = torch.full((30,), torch.nan)
    feed(scaler, params, [[g.clone()] for g in [*steps[:9], bad, *steps[9:]]])
    assert scaler.num_skipped == 1
    assert scaler.get_normalized_variance() == pytest.approx(slow(steps, 0.99), rel=1e-4)
