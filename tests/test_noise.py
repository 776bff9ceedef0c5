"""Noise estimators against streams whose signal and covariance are known."""

import copy
import itertools
import math
import pickle

import pytest
import torch

from gqc.noise import (
    NoiseScaleEMA,
    RobustNoiseScaleEMA,
    ema_kappa,
    ema_weight,
    predicted_draws,
    two_batch,
    unequal_two_batch,
)
from gqc_lab.studies.noise.streams import two_batch_errors


def windows(noise_scale, dimension, num_draws, num_windows, seed=0, signal_sq=1.0):
    """Yield (S1, S2) of windows of n Gaussian microbatches with |G|^2 and tr(Sigma) as given."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(dimension, generator=generator, dtype=torch.float64)
    signal *= math.sqrt(signal_sq) / signal.norm()
    deviation = math.sqrt(noise_scale * signal_sq / dimension)
    for _ in range(num_windows):
        noise = torch.randn(num_draws, dimension, generator=generator)  # float32: faster to draw
        draws = signal + deviation * noise.double()
        yield draws.square().sum(1).mean().item(), draws.mean(0).square().sum().item()


def reference(draws):
    """Sample covariance, and the squared mean less its noise: the textbook route to two_batch."""
    mean = draws.mean(0)
    trace = (draws - mean).square().sum() / (len(draws) - 1)
    return mean.square().sum() - trace / len(draws), trace


@pytest.mark.parametrize("num_draws", [2, 3, 8, 32])
def test_two_batch_is_the_sample_covariance(num_draws):
    draws = torch.randn(num_draws, 17, generator=torch.Generator().manual_seed(1)).double() + 0.3
    got = two_batch(draws.square().sum(1).mean(), draws.mean(0).square().sum(), num_draws)
    torch.testing.assert_close(got, reference(draws))


def test_two_batch_takes_floats_and_tensors():
    signal, trace = two_batch(3.0, 2.0, 4)
    assert (signal, trace) == (5 / 3, 4 / 3)
    signal, trace = two_batch(torch.tensor([3.0, 3.0]), torch.tensor([2.0, 2.0]), 4)
    assert signal.tolist() == pytest.approx([5 / 3] * 2)
    assert trace.tolist() == pytest.approx([4 / 3] * 2)


@pytest.mark.parametrize("num_draws", [1, 0, -2, math.nan])
def test_two_batch_needs_two_batch_sizes(num_draws):
    with pytest.raises(ValueError, match="num_draws"):
        two_batch(1.0, 1.0, num_draws)


CASES = list(itertools.product([1, 10, 100, 1000], [100, 10_000], [8, 32]))


@pytest.mark.parametrize(("noise_scale", "dimension", "num_draws"), CASES)
def test_two_batch_errors_are_as_small_as_predicted(noise_scale, dimension, num_draws):
    """32 checks at 3 standard errors: about one seed in 12 fails one by chance (seed 0 does)."""
    average = NoiseScaleEMA(decay=1 - 1e-9)  # a plain mean
    for small_sq, large_sq in windows(noise_scale, dimension, num_draws, 200, seed=1):
        average.update(*two_batch(small_sq, large_sq, num_draws))
        assert average.noise_scale is None or 0 <= average.noise_scale < math.inf
    signal_error, noise_error, ratio_error = two_batch_errors(
        1.0, noise_scale, num_draws, dimension, num_windows=200
    )
    assert abs(average.signal_sq - 1) < 3 * signal_error
    assert abs(average.noise_trace - noise_scale) < 3 * noise_error
    if ratio_error < 0.015:
        assert average.noise_scale == pytest.approx(noise_scale, rel=0.05)


def test_some_case_holds_the_ratio_to_five_percent():
    errors = [two_batch_errors(1.0, r, n, d, 200)[2] for r, d, n in CASES]
    assert sum(error < 0.015 for error in errors) >= 6


@pytest.mark.parametrize(("noise_scale", "dimension", "num_draws"), [(1, 100, 8), (50, 30, 4)])
def test_predicted_errors_are_those_measured(noise_scale, dimension, num_draws):
    """The spread of 4000 windows: relative error of a standard deviation is 1/sqrt(2*4000) = 1.1%;
    4 of them, and 1% more for the excess kurtosis of a chi-square with few degrees of freedom."""
    estimates = torch.tensor(
        [
            two_batch(*sums, num_draws)
            for sums in windows(noise_scale, dimension, num_draws, 4000, seed=3)
        ]
    )
    predicted = two_batch_errors(1.0, noise_scale, num_draws, dimension)
    assert estimates[:, 0].std().item() == pytest.approx(predicted[0], rel=0.055)
    assert estimates[:, 1].std().item() == pytest.approx(predicted[1], rel=0.055)


def test_predicted_error_of_the_ratio_is_that_measured():
    """300 averages of 100 windows; relative error of their spread 1/sqrt(600) = 4%, times 3."""
    ratios = []
    stream = windows(10, 200, 8, 30_000, seed=4)
    for _ in range(300):
        signal, noise = zip(
            *(two_batch(*sums, 8) for sums in itertools.islice(stream, 100)), strict=True
        )
        ratios.append(sum(noise) / sum(signal))
    predicted = two_batch_errors(1.0, 10, 8, 200, num_windows=100)[2]
    assert torch.tensor(ratios).std().item() / 10 == pytest.approx(predicted, rel=0.12)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((0.0, 1.0, 8, 10), "signal_sq=0.0: expected the true value"),
        ((1.0, math.nan, 8, 10), "noise_trace=nan"),
        ((1.0, 1.0, 1, 10), "num_draws=1: expected > 1"),
    ],
)
def test_errors_of_an_estimate_that_cannot_be_made(args, message):
    with pytest.raises(ValueError, match=message):
        two_batch_errors(*args)


def test_average_of_ratios_would_be_wrong():
    """Why NoiseScaleEMA averages first: single windows have denominators on both sides of zero."""
    sums = list(windows(100, 100, 8, 500, seed=5))
    estimates = [two_batch(*pair, 8) for pair in sums]
    average_of_ratios = sum(t / s for s, t in estimates) / len(estimates)
    ratio_of_averages = sum(t for _, t in estimates) / sum(s for s, _ in estimates)
    error = two_batch_errors(1.0, 100, 8, 100, num_windows=500)[2]
    assert abs(ratio_of_averages / 100 - 1) < 3 * error
    assert abs(average_of_ratios / 100 - 1) > 3 * error


def test_ema_is_the_bias_corrected_one():
    ema, raw, values = NoiseScaleEMA(decay=0.9), 0.0, [1.0, 5.0, -2.0, 4.0]
    for t, value in enumerate(values, start=1):
        ema.update(value, 2 * value)
        raw = 0.9 * raw + 0.1 * value
        assert ema.signal_sq == pytest.approx(raw / (1 - 0.9**t))
        assert ema.noise_trace == pytest.approx(2 * ema.signal_sq)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_noise_scale_does_not_depend_on_the_scale_of_gradients(scale):
    plain, scaled = NoiseScaleEMA(), NoiseScaleEMA()
    for sums in windows(10, 50, 8, 20):
        signal, noise = two_batch(*sums, 8)
        plain.update(signal, noise)
        scaled.update(signal * scale**2, noise * scale**2)
    assert scaled.noise_scale == pytest.approx(plain.noise_scale, rel=1e-12)


def test_unresolved_is_none_never_negative_or_nan():
    ema = NoiseScaleEMA(decay=0.5)
    assert ema.noise_scale is None
    ema.update(-1.0, 3.0)
    assert ema.noise_scale is None
    ema.update(0.5, 3.0)  # average is exactly zero
    assert ema.signal_sq == pytest.approx(0)
    ema.update(8.0, -10.0)  # rounding can make the trace of a constant gradient negative
    assert ema.noise_scale == 0.0
    subnormal = NoiseScaleEMA()
    subnormal.update(5e-324, 1e300)
    assert subnormal.noise_scale is None


def test_non_finite_windows_are_refused_and_leave_no_trace():
    ema = NoiseScaleEMA()
    ema.update(1.0, 2.0)
    before = ema.state_dict()
    for bad in [(math.nan, 1.0), (1.0, math.inf)]:
        with pytest.raises(ValueError, match="finite"):
            ema.update(*bad)
    assert ema.state_dict() == before


def test_ema_state_round_trips():
    ema = NoiseScaleEMA(decay=0.8)
    ema.update(1.0, 2.0)
    other = NoiseScaleEMA()
    other.load_state_dict(ema.state_dict())
    for twin in [other, copy.deepcopy(ema), pickle.loads(pickle.dumps(ema))]:
        twin.update(3.0, 5.0)
    ema.update(3.0, 5.0)
    assert other.state_dict() == ema.state_dict()


@pytest.mark.parametrize("change", [{"decay": 1.0}, {"signal_sq": math.nan}, {"extra": 1.0}])
def test_bad_ema_state_changes_nothing(change):
    ema = NoiseScaleEMA()
    ema.update(1.0, 2.0)
    before = ema.state_dict()
    with pytest.raises(ValueError):
        ema.load_state_dict(before | change)
    assert ema.state_dict() == before


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, math.nan])
def test_decay_is_checked(decay):
    with pytest.raises(ValueError, match="decay"):
        NoiseScaleEMA(decay)


def test_predicted_draws():
    assert predicted_draws(1.0, 10.0, math.sqrt(2)) == pytest.approx(10)
    assert predicted_draws(1.0, 10.0, 1.0) == math.inf
    assert predicted_draws(1.0, 10.0, 0.5) == math.inf
    assert predicted_draws(1.0, 0.0, 2.0) == 0.0


def test_mean_squared_norm_crosses_the_threshold_at_the_predicted_draws():
    """E|G_n|^2 at n = n* is tau^2; 2000 windows, 4 standard errors."""
    n = predicted_draws(1.0, 24.0, 2.0)
    assert n == pytest.approx(8)
    large = torch.tensor([large_sq for _, large_sq in windows(24.0, 50, 8, 2000, seed=6)])
    assert abs(large.mean().item() - 4.0) < 4 * large.std().item() / math.sqrt(2000)


@pytest.mark.parametrize(
    "arguments", [(1.0, 1.0, math.nan), (1.0, 1.0, -1.0), (1.0, -1.0, 1.0), (math.nan, 1.0, 1.0)]
)
def test_predicted_draws_checks_its_arguments(arguments):
    with pytest.raises(ValueError):
        predicted_draws(*arguments)


def weights(count, beta):
    """Those of a bias-corrected average, oldest first, from the definition."""
    raw = [beta ** (count - 1 - i) for i in range(count)]
    return torch.tensor(raw, dtype=torch.float64) / sum(raw)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 500])
def test_weight_and_kappa_are_those_of_the_average(beta, count):
    """float32, from a float64 reference: a few roundings of 6e-8, no cancellation at small t."""
    expected = weights(count, beta)
    t = torch.tensor(float(count))
    assert ema_weight(t, beta).item() == pytest.approx(expected[-1].item(), rel=1e-6)
    assert ema_kappa(t, beta).item() == pytest.approx(expected.square().sum().item(), rel=1e-6)


def test_weight_and_kappa_at_the_ends():
    t = torch.tensor([0.0, 1.0, 1e7])
    assert ema_weight(t, 0.99).tolist()[:2] == [0.0, 1.0]
    assert ema_kappa(t, 0.99).tolist()[:2] == [1.0, 1.0]
    assert 1 / ema_kappa(t, 0.99)[2].item() == pytest.approx(199)
    assert 1 / ema_kappa(t, 0.999)[2].item() == pytest.approx(1999)


def run_moments(values, beta):
    mean, spread = torch.zeros_like(values[0]), torch.zeros_like(values[0])
    for t, value in enumerate(values, start=1):
        a = ema_weight(torch.tensor(float(t)), beta)
        spread = (1 - a) * (spread + a * (value - mean) ** 2)
        mean = mean + a * (value - mean)
    return mean, spread


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_recursion_is_the_weighted_mean_and_variance(count):
    values = torch.randn(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = weights(count, 0.97)[:, None]
    mean, spread = run_moments(values, 0.97)
    torch.testing.assert_close(mean, (w * values).sum(0), rtol=1e-6, atol=1e-7)
    expected = (w * values**2).sum(0) - (w * values).sum(0) ** 2
    torch.testing.assert_close(spread, expected, rtol=1e-5, atol=1e-7)


def test_recursion_keeps_a_small_variance_of_a_large_mean():
    """Mean 1e3, deviation 0.1, float32 values exact to 6e-5: (s - m^2) loses it, this does not."""
    generator = torch.Generator().manual_seed(2)
    values = 1e3 + 0.1 * torch.randn(1000, 64, generator=generator)
    w = weights(1000, 0.99)[:, None]
    v = values.double()
    true = ((w * v**2).sum(0) - (w * v).sum(0) ** 2).mean().item()
    _, spread = run_moments(values, 0.99)
    assert spread.mean().item() == pytest.approx(true, rel=1e-3)
    m, s = torch.zeros(64), torch.zeros(64)
    for value in values:
        m, s = 0.99 * m + 0.01 * value, 0.99 * s + 0.01 * value**2
    naive = ((s - m**2) / (1 - 0.99**1000)).mean().item()
    assert naive != pytest.approx(true, rel=0.5)


# --- microbatches of different sizes -------------------------------------------------------------


def of_windows(weights, noise_scale, num_windows=4000, dimension=20, seed=0):
    """Averages of both estimates; |G| = 1 and ``noise_scale`` units."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.tensor(weights, dtype=torch.float64)
    signal = torch.zeros(dimension, dtype=torch.float64)
    signal[0] = 1.0
    deviation = (noise_scale / dimension / w).sqrt()[:, None]
    shape = (num_windows, len(w), dimension)
    draws = signal + deviation * torch.randn(shape, generator=generator, dtype=torch.float64)
    squares = draws.square().sum(2)
    means = (w[:, None] * draws).sum(1) / w.sum()
    large = means.square().sum(1).mean().item()
    unequal = unequal_two_batch((w * squares).sum(1).mean().item(), large, w.sum().item(), len(w))
    return unequal, two_batch(squares.mean().item(), large, len(w))


@pytest.mark.parametrize("weights", [[7.0, 1.0], [64.0, 1024.0] * 4, [1.0, 2.0, 3.0], [1.0] * 8])
@pytest.mark.parametrize("units", [5.0, 300.0])
def test_unequal_draws_are_estimated_without_bias(weights, units):
    """4000 windows of 20 dimensions: T to sqrt(2 / 20 / 4000) = 0.5 %, four times that allowed."""
    noise_scale = units
    (signal, trace), _ = of_windows(weights, noise_scale)
    total = sum(weights)
    assert trace == pytest.approx(noise_scale, rel=0.02 * math.sqrt(2 / (len(weights) - 1)))
    deviation = math.sqrt((4 * noise_scale / 20 / total + 4 * (noise_scale / total) ** 2) / 4000)
    assert signal == pytest.approx(1.0, abs=4 * deviation)


def test_tokens_of_unequal_microbatches_do_not_pass_for_noise():
    """Sizes of 64 and 1024 tokens and R = 5440 tokens, 10 microbatches of their mean size."""
    unequal, equal = of_windows([64.0, 1024.0] * 4, 5440.0)
    assert unequal[1] / unequal[0] / 544 == pytest.approx(10, rel=0.1)
    assert equal[0] < 0  # the estimate for equal draws does not even find the signal


def test_equal_weights_are_two_batch():
    small, large = 3.0, 1.5
    assert unequal_two_batch(4 * small, large, 4.0, 4) == pytest.approx(two_batch(small, large, 4))
    pair = unequal_two_batch(torch.tensor(12.0), torch.tensor(1.5), 4.0, 4)
    assert [x.item() for x in pair] == pytest.approx(two_batch(small, large, 4))
    for bad in ((1.0, 1), (0.0, 4), (math.nan, 4)):
        with pytest.raises(ValueError, match="expected >"):
            unequal_two_batch(1.0, 1.0, *bad)


# --- heavy tails ---------------------------------------------------------------------------------


def heavy_windows(seed, num_windows=100, dimension=50, num_draws=4):
    """Two-batch estimates of Student's t with two degrees of freedom, around a mean of norm 1."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_windows, num_draws, dimension)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    chi2 = -2 * torch.rand(*shape[:2], 1, generator=generator, dtype=torch.float64).log()
    draws = 1 / math.sqrt(dimension) + 0.3 * normal / (chi2 / 2).sqrt()
    small, large = draws.square().sum(2).mean(1), draws.mean(1).square().sum(1)
    return list(zip(*(x.tolist() for x in two_batch(small, large, num_draws)), strict=True))


def test_a_robust_average_is_near_the_noise_of_a_typical_window():
    """Over 40 seeds it has at most 3.5 times the trace of the median window; the plain one 13.6."""
    plain, robust = [], []
    for seed in range(40):
        averages = NoiseScaleEMA(), RobustNoiseScaleEMA()
        windows = heavy_windows(seed)
        for pair in windows:
            for average in averages:
                average.update(*pair)
        typical = sorted(trace for _, trace in windows)[len(windows) // 2]
        plain.append(averages[0].noise_trace / typical)
        robust.append(averages[1].noise_trace / typical)
    assert min(robust) > 0.5
    assert max(robust) < 4 < 10 < max(plain)
    assert sorted(plain)[36] > 3 * sorted(robust)[20]


def test_a_robust_average_agrees_on_gaussian_noise():
    """About 20 windows of 200 dimensions and n = 8: 1 / sqrt(20 * 200 * 7 / 2) = 0.8 %."""
    plain, robust = NoiseScaleEMA(), RobustNoiseScaleEMA()
    for small, large in windows(3.0, 200, 8, 200):
        pair = two_batch(small, large, 8)
        plain.update(*pair), robust.update(*pair)
    assert robust.noise_trace == pytest.approx(3.0, rel=0.05)
    assert robust.noise_trace == pytest.approx(plain.noise_trace, rel=0.05)


def test_a_robust_average_is_saved_and_refuses_what_is_not_its_own():
    first, second = RobustNoiseScaleEMA(num_groups=3), RobustNoiseScaleEMA()
    for pair in heavy_windows(0)[:7]:
        first.update(*pair)
    second.load_state_dict(first.state_dict())
    for pair in heavy_windows(1)[:4]:
        first.update(*pair), second.update(*pair)
    assert vars(second).keys() == vars(first).keys()
    assert second.state_dict() == first.state_dict()
    assert (second.signal_sq, second.noise_trace) == (first.signal_sq, first.noise_trace)
    assert RobustNoiseScaleEMA().noise_scale is None
    with pytest.raises(ValueError, match="RobustNoiseScaleEMA state has keys"):
        second.load_state_dict(NoiseScaleEMA().state_dict())
    with pytest.raises(ValueError, match="num_groups=0"):
        RobustNoiseScaleEMA(num_groups=0)
    with pytest.raises(ValueError, match="finite"):
        second.update(math.nan, 1.0)
    assert second.state_dict() == first.state_dict()
