"""Streams of known noise, the interval of a ratio, and estimates held to the truth."""

import math
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from gqc_lab.studies.noise.streams import (
    COLUMNS,
    measure_estimates,
    published_ratio,
    ratio_interval,
    stream,
    two_batch_errors,
)


def gradients(noise_scale, dimension, count, **where):
    return next(stream(noise_scale, dimension, count, **where)).double()


def test_a_stream_has_the_noise_and_the_signal_that_it_says():
    """20 000 gradients of 50 parameters: predicted standard errors, 4 of them."""
    draws = gradients(10.0, 50, 20_000)
    signal_error, noise_error, _ = two_batch_errors(1.0, 10.0, 20_000, 50)
    assert abs(draws.var(0).sum().item() - 10) < 4 * noise_error
    assert abs(draws.mean(0).square().sum().item() - 1 - 10 / 20_000) < 4 * signal_error
    spread = draws.var(0)  # isotropic: each of the 50 variances has error R/d sqrt(2/n)
    assert (spread - 0.2).abs().max().item() < 5 * 0.2 * math.sqrt(2 / 20_000)


def test_streams_go_on_differ_and_repeat():
    first, second = islice(stream(10.0, 7, 3), 2)
    assert not torch.equal(first, second)
    assert torch.equal(first, next(stream(10.0, 7, 3)))
    others = [gradients(10.0, 7, 3, seed=1), gradients(11.0, 7, 3), gradients(10.0, 8, 3)[:, :7]]
    assert all(not torch.equal(first.double(), other) for other in others)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_stream_has_the_dtype_asked_for(dtype):
    draws = next(stream(1.0, 5, 2, dtype=dtype))
    assert str(draws.dtype) == f"torch.{dtype}"
    torch.testing.assert_close(draws.double(), gradients(1.0, 5, 2), rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    ("noise_scale", "dimension"), [(-1.0, 5), (math.nan, 5), (math.inf, 5), (1.0, 0)]
)
def test_an_impossible_stream_is_refused(noise_scale, dimension):
    with pytest.raises(ValueError, match=r"noise_scale=|dimension="):
        next(stream(noise_scale, dimension, 2))


@pytest.mark.parametrize("noise_scale", [0.0, 1.0, 10.0, 1000.0])
def test_the_published_ratio_knows_the_dimension_and_not_the_noise(noise_scale):
    """Of 4000 lengths: relative error of a variance sqrt(2/4000) = 2.2 %, 4 of them; 1/d more."""
    d = 500
    ratio = published_ratio(gradients(noise_scale, d, 4000).norm(dim=1))
    expected = (1 - (noise_scale + 1) ** -2) / (2 * d)
    assert ratio == pytest.approx(expected, rel=0.09 + 1 / d, abs=1e-12)


def is_accepted(a, b, ratio, confidence):
    """A t-test of mean(a - ratio b) = 0 does not reject."""
    return stats.ttest_1samp(a - ratio * b, 0.0).pvalue >= 1 - confidence


def pairs(signal, trace):
    """12 pairs of estimates with these means, spread 1, and correlated as those of a window are."""
    rng = np.random.default_rng([int(10 * signal + 100), int(10 * trace)])
    b = rng.normal(signal, 1, 12)
    return rng.normal(trace, 1, 12) - 0.5 * (b - signal), b


MEANS = [(3.0, 2.0), (3.0, 0.1), (0.6, 3.0), (0.2, 3.0), (0.2, 0.1), (0.0, 0.0), (-0.5, 2.0)]


@pytest.mark.parametrize("confidence", [0.5, 0.95])
@pytest.mark.parametrize("means", MEANS)
def test_the_interval_holds_what_a_t_test_accepts(means, confidence):
    a, b = pairs(*means)
    low, high = ratio_interval(a, b, confidence)
    ratios = [0.0, *np.geomspace(1e-3, 1e4, 400)]
    accepted = [r for r in ratios if is_accepted(a, b, r, confidence)]
    if math.isnan(low):
        assert math.isnan(high)
        assert not accepted
        return
    assert all(low * (1 - 1e-9) <= r <= high * (1 + 1e-9) for r in accepted)
    for bound in (low, high):  # each bound is itself at the edge of the test
        if 0 < bound < math.inf:
            p = stats.ttest_1samp(a - bound * b, 0.0).pvalue
            assert p == pytest.approx(1 - confidence, rel=1e-6)
    assert (high == math.inf) == is_accepted(a, b, 1e9, confidence)
    assert (low == 0) == is_accepted(a, b, 0.0, confidence)


def test_all_shapes_of_interval_occur():
    """Bounded, up to a bound, from a bound on, everything; and, at 50 %, nothing."""
    bounds = [ratio_interval(*pairs(*means)) for means in MEANS]
    kinds = {(low > 0, high < math.inf) for low, high in bounds}
    assert kinds == {(True, True), (False, True), (True, False), (False, False)}
    assert any(math.isnan(ratio_interval(*pairs(*means), 0.5)[0]) for means in MEANS)


def test_the_interval_over_a_constant_is_the_t_interval():
    a = np.array([1.0, 2.0, 4.0, 3.5])
    low, high = ratio_interval(a, np.full(4, 2.0))
    expected = stats.t.interval(0.95, 3, loc=a.mean(), scale=stats.sem(a))
    assert (2 * low, 2 * high) == pytest.approx(expected)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """2000 intervals of 20 pairs of normals: standard error of the coverage 0.5 %, 4 of them."""
    rng = np.random.default_rng(0)
    b = rng.normal(1.0, 1.0, (2000, 20))
    a = rng.normal(5.0, 2.0, (2000, 20)) - 0.5 * (b - 1)
    bounds = np.array([ratio_interval(x, y) for x, y in zip(a, b, strict=True)])
    covered = (bounds[:, 0] <= 5) & (bounds[:, 1] >= 5)
    assert covered.mean() == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("pairs", [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([], [])])
def test_an_interval_needs_pairs(pairs):
    with pytest.raises(ValueError, match="expected two or more pairs"):
        ratio_interval(*pairs)


def test_estimates_are_as_near_the_truth_as_predicted():
    frame = measure_estimates([1.0, 10.0, 100.0], [100, 10_000], 30, num_draws=16, seed=1)
    assert list(frame.columns) == list(COLUMNS)
    ours = frame[frame["measurement"] == "two-batch"]
    assert len(ours) == 6
    error = (ours["measured"] / ours["truth"] - 1).abs()
    assert (error < 3 * ours["predicted_error"]).all()
    assert (ours["low"] < ours["measured"]).all()
    assert (ours["measured"] < ours["high"]).all()
    published = frame[(frame["measurement"] == "published") & (frame["truth"] == 100)]
    assert published["measured"].tolist() == pytest.approx([5e-3, 5e-5], rel=0.3)
    assert not frame["measured"].isna().any()


def test_an_unresolved_noise_scale_is_no_number_and_has_no_upper_bound():
    frames = [measure_estimates([1e6], [50], 5, seed=seed) for seed in range(8)]
    ours = pd.concat([f[f["measurement"] == "two-batch"] for f in frames])
    assert 0 < ours["measured"].isna().sum() < 8  # a coin flip each
    assert (ours["measured"].dropna() > 0).all()
    assert (ours["high"] == math.inf).sum() >= 6  # at 95 %


def test_nothing_touches_the_global_random_stream():
    before = torch.get_rng_state()
    measure_estimates([1.0], [10], 3)
    assert torch.equal(torch.get_rng_state(), before)
