"""Fits of power laws with a floor, against exact curves, a known floor and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from gqc.lab.analysis import power_law
from gqc.lab.analysis_scaling import floored_power_law


def curve(x, a=2.0, b=0.35, c=1.5):
    return a * x**-b + c


@pytest.mark.parametrize("scale", [1.0, 1e9])
def test_an_exact_curve_is_recovered(scale):
    x = np.geomspace(1, 1e3, 9) * scale
    fit = floored_power_law(x, curve(x))
    assert (fit.coefficient, fit.exponent, fit.floor) == pytest.approx((2.0, 0.35, 1.5), rel=1e-4)
    assert fit.high - fit.low < 1e-3
    np.testing.assert_allclose(fit(x), curve(x), rtol=1e-6)


def noisy(seed=0, n=10, sigma=0.01):
    rng, x = np.random.default_rng(seed), np.geomspace(1, 1e3, n)
    return x, curve(x) * np.exp(rng.normal(0, sigma, n))


def relative_cost(parameters, x, y):
    return (curve(x, *parameters) / y - 1) ** 2


def test_the_fit_is_the_least_of_a_general_optimiser():
    x, y = noisy()
    fit = floored_power_law(x, y)
    found = optimize.least_squares(lambda p: curve(x, *p) / y - 1, [1.0, 0.5, 1.0], xtol=1e-12)
    assert (fit.coefficient, fit.exponent, fit.floor) == pytest.approx(tuple(found.x), rel=1e-3)
    least = relative_cost(found.x, x, y).sum()
    assert fit.relative_error == pytest.approx(math.sqrt(least / 7), rel=1e-6)


def test_the_bounds_are_where_the_profile_passes_the_limit():
    x, y = noisy()
    fit = floored_power_law(x, y, confidence=0.9)
    least = fit.relative_error**2 * 7
    for b in (fit.low, fit.high):
        profile = optimize.least_squares(lambda p, b=b: curve(x, p[0], b, p[1]) / y - 1, [1.0, 1.0])
        assert 2 * profile.cost == pytest.approx(least * (1 + stats.f.ppf(0.9, 1, 7) / 7), rel=1e-6)
    assert fit.low < fit.exponent < fit.high


@pytest.mark.parametrize("sigma", [0.005, 0.02])
def test_interval_covers_what_it_promises(sigma):
    repeats = 150
    fits = (floored_power_law(*noisy(seed, 8, sigma)) for seed in range(repeats))
    share = np.mean([fit.low <= 0.35 <= fit.high for fit in fits])
    assert share == pytest.approx(0.95, abs=0.071)  # four standard errors of 0.0178


def test_a_guessed_floor_makes_an_interval_that_is_too_narrow():
    misses = 0
    for seed in range(40):
        x, y = noisy(seed, 8, 0.005)
        guess = power_law(x, y, floor=1.4)
        misses += not guess.low <= 0.35 <= guess.high
    assert misses > 20


def test_data_that_do_not_bound_the_exponent_say_so():
    x = np.geomspace(1, 1e3, 5)
    flat = np.array([1.0, 1.01, 0.99, 1.0, 1.01])
    fit = floored_power_law(x, flat)
    assert (fit.low, fit.high) == (0.0, math.inf)


def test_a_floor_is_never_negative():
    x = np.geomspace(1, 1e3, 7)
    fit = floored_power_law(x, 5 - 0.5 * np.log(x))  # falls faster than any power law with a floor
    assert fit.floor == 0.0
    assert fit.coefficient > 0


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 3], [1, 2, 3], "4 distinct x"),
        ([1, 2, 3, 3], [1, 2, 3, 4], "4 distinct x"),
        ([1, 2, 3, 4], [1, 2, 3], r"shapes \(4,\), \(3,\)"),
        ([0, 1, 2, 3], [1, 1, 1, 1], "x > 0 and y > 0"),
        ([1, 2, 3, 4], [1, 1, 0, 1], "x > 0 and y > 0"),
        ([1, 2, 3, 4], [1, 1, math.nan, 1], "x > 0 and y > 0"),
        ([1, 2, 3, math.inf], [1, 1, 1, 1], "x > 0 and y > 0"),
    ],
)
def test_bad_data_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        floored_power_law(x, y)


def test_bad_confidence_is_refused():
    with pytest.raises(ValueError, match="confidence=0"):
        floored_power_law([1, 2, 3, 4], [4, 3, 2, 1], confidence=0)
