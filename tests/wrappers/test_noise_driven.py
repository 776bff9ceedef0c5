"""GNS, NormTest and MHT against streams and samples whose truth is known."""

from __future__ import annotations

import math
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import backward
from scipy import special, stats
from torch.optim import SGD

import gqc
import gqc.diagnostics
from gqc.wrappers.mht import t_interval


def run(make, scale: float, dimension: int, windows: int, factor: float = 1.0):
    """Feed draws with known noise scale R = tr(Sigma)/|G|^2; the list of n's and the wrapper."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(dimension, requires_grad=True)
    wrapper = make(torch.optim.SGD([x], lr=0.0))
    signal = torch.full((dimension,), dimension**-0.5)
    draws = []
    while len(draws) < windows:
        noise = (scale / dimension) ** 0.5 * torch.randn(dimension, generator=generator)
        backward([x], [factor * (signal + noise)])
        if wrapper.step():
            draws.append(wrapper.last_num_draws)
    return draws, wrapper


def test_gns_draws_as_many_microbatches_as_the_noise_scale():
    """R = 10: windows of about 10 draws, and an estimate that the decision has not biased."""
    draws, wrapper = run(gqc.OptimizerWrapperGNS, 10.0, 2000, 300)
    assert draws[0] == 8
    # one window at n = 10, d = 2000 has a relative error near 0.07, averaged over about 20
    assert wrapper.statistics()["noise_scale"] == pytest.approx(10.0, rel=0.1)
    assert sum(draws[50:]) / len(draws[50:]) == pytest.approx(10.5, rel=0.1)  # R rounded up


@pytest.mark.slow
def test_gns_decides_by_past_windows_since_the_open_one_biases_it():
    """With decay 0 each window's own estimate shows; R = 10 in d = 50 from 600 of them."""
    seen = {}
    for reactive in (False, True):
        generator = torch.Generator().manual_seed(0)
        x = torch.zeros(50, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=0.0)
        wrapper = gqc.OptimizerWrapperGNS(optimizer, reactive=reactive, decay=0.0)
        signal, noise, windows = 0.0, 0.0, 0
        while windows < 600:
            draw = 50**-0.5 + (10.0 / 50) ** 0.5 * torch.randn(50, generator=generator)
            backward([x], [draw])
            if wrapper.step():
                signal += wrapper.statistics()["signal_sq"]
                noise += wrapper.statistics()["noise_trace"]
                windows += 1
        seen[reactive] = noise / signal
    assert seen[False] == pytest.approx(10.0, rel=0.08)
    assert seen[True] < 0.8 * 10.0


def test_a_reactive_gns_draws_more_on_a_noisy_stretch_at_once():
    def window_after_a_burst(reactive: bool) -> int:
        generator = torch.Generator().manual_seed(3)
        x = torch.zeros(1000, requires_grad=True)
        wrapper = gqc.OptimizerWrapperGNS(torch.optim.SGD([x], lr=0.0), 1.0, reactive=reactive)
        signal = torch.full((1000,), 1000**-0.5)
        scale, steps = 4.0, 0
        for _ in range(2000):
            noise = (scale / 1000) ** 0.5 * torch.randn(1000, generator=generator)
            backward([x], [signal + noise])
            if wrapper.step():
                steps += 1
                if scale > 4.0:
                    return wrapper.last_num_draws
                scale = 400.0 if steps == 40 else 4.0
        raise AssertionError("no window closed after the burst")

    assert window_after_a_burst(reactive=False) <= 6
    assert window_after_a_burst(reactive=True) >= 12


@pytest.mark.parametrize(("reactive", "first"), [(False, 8), (True, 2)])
def test_gns_draws_8_before_anything_is_known_unless_it_looks_at_the_open_window(reactive, first):
    x = torch.zeros(3, requires_grad=True)
    wrapper = gqc.OptimizerWrapperGNS(torch.optim.SGD([x], lr=0.0), reactive=reactive)
    for number in range(1, first + 1):
        backward([x], [torch.ones(3)])
        assert wrapper.step() is (number == first)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_gns_does_not_see_the_scale_of_the_gradients(factor):
    draws, wrapper = run(gqc.OptimizerWrapperGNS, 10.0, 200, 50)
    scaled, other = run(gqc.OptimizerWrapperGNS, 10.0, 200, 50, factor)
    assert scaled == draws
    scale = wrapper.statistics()["noise_scale"]
    assert other.statistics()["noise_scale"] == pytest.approx(scale, rel=1e-4)


def test_pure_noise_is_unresolved_never_negative_and_draws_to_the_end():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(100, requires_grad=True)
    wrapper = gqc.OptimizerWrapperGNS(torch.optim.SGD([x], lr=0.0), max_draws=16)
    unresolved = 0
    for _ in range(3000):
        backward([x], [torch.randn(100, generator=generator)])
        if wrapper.step():
            scale = wrapper.statistics()["noise_scale"]
            assert scale is None or (scale >= 0 and math.isfinite(scale))
            unresolved += scale is None
    assert unresolved > 10
    assert wrapper.statistics()["num_forced"] > 0


NOISE_DRIVEN = (gqc.OptimizerWrapperGNS, gqc.OptimizerWrapperNormTest)


@pytest.mark.parametrize("kind", NOISE_DRIVEN)
def test_a_robust_average_stays_near_typical_windows_under_heavy_tails(kind):
    """Every 40th draw has 10,000 times the noise of R = 8; the mean over windows follows it."""
    read = {}
    for robust in (False, True):
        generator = torch.Generator().manual_seed(0)
        x = torch.zeros(500, requires_grad=True)
        wrapper = kind(SGD([x], lr=0.0), 1e-12, max_draws=4, robust=robust)
        for i in range(4 * 200):
            scale = 8e4 if i % 40 == 39 else 8.0
            noise = (scale / 500) ** 0.5 * torch.randn(500, generator=generator)
            x.backward(500**-0.5 + noise)
            wrapper.step()
        read[robust] = wrapper.statistics()["noise_trace"]
    assert read[True] == pytest.approx(8.0, rel=0.3)
    assert read[False] > 5 * read[True]


def test_the_state_of_another_kind_of_average_changes_nothing():
    x = torch.zeros(3, requires_grad=True)
    robust = gqc.OptimizerWrapperGNS(SGD([x], lr=1.0), robust=True).state_dict()
    wrapper = gqc.OptimizerWrapperGNS(SGD([x], lr=0.5))
    before = wrapper.state_dict()
    with pytest.raises(ValueError, match="NoiseScaleEMA state has keys"):
        wrapper.load_state_dict(robust)
    assert wrapper.state_dict() == before


def test_a_damaged_average_of_gnts_changes_nothing():
    x = torch.zeros(3, requires_grad=True)
    state = gqc.OptimizerWrapperGNTS(SGD([x], lr=1.0)).state_dict()
    state["wrappers"][-1]["extra"]["noise"]["signal_sq"] = math.nan
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x], lr=0.5))
    before = wrapper.state_dict()
    with pytest.raises(ValueError, match="non-finite average"):
        wrapper.load_state_dict(state)
    assert wrapper.state_dict() == before


@pytest.mark.parametrize("kind", NOISE_DRIVEN)
@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_correlated_draws_are_told_where_they_are_looked_at(kind, correlation):
    x = torch.zeros(500, requires_grad=True)
    wrapper = kind(SGD([x], lr=0.0), correlation=gqc.diagnostics.DrawCorrelation())
    generator, noise = torch.Generator().manual_seed(0), torch.zeros(500)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(200):
            fresh = torch.randn(500, generator=generator)
            noise = correlation * noise + (1 - correlation**2) ** 0.5 * fresh
            x.backward(500**-0.5 + (10 / 500) ** 0.5 * noise)
            wrapper.step()
    assert len(caught) == (correlation > 0)
    assert all("successive draws have a correlation of 0." in str(w.message) for w in caught)


def test_a_norm_test_by_past_windows_knows_what_closes_and_is_gns_at_theta_squared():
    runs = {}
    for kind, tolerance in zip(NOISE_DRIVEN, (0.25, 0.5), strict=True):
        options = {} if kind is gqc.OptimizerWrapperGNS else {"reactive": False}
        generator = torch.Generator().manual_seed(0)
        x = torch.zeros(200, requires_grad=True)
        wrapper = kind(SGD([x], lr=0.0), tolerance, **options)
        runs[kind] = []
        for _ in range(300):
            answer = wrapper.closes_next()
            x.backward(200**-0.5 + (2 / 200) ** 0.5 * torch.randn(200, generator=generator))
            assert wrapper.step() is answer
            runs[kind].append(answer)
    gns, norm_test = runs.values()
    assert norm_test == gns
    assert 20 < sum(gns) < 100


def test_norm_test_needs_about_r_over_theta_squared_draws():
    """It closes where tr(Sigma)/n falls below theta^2 |G|^2."""
    draws, _ = run(lambda opt: gqc.OptimizerWrapperNormTest(opt, 1.0), 20.0, 5000, 60)
    assert sum(draws) / len(draws) == pytest.approx(20.0, rel=0.15)
    draws, _ = run(lambda opt: gqc.OptimizerWrapperNormTest(opt, 2.0), 20.0, 5000, 60)
    assert sum(draws) / len(draws) == pytest.approx(5.0, rel=0.25)


def test_the_published_norm_test_stops_almost_at_once_on_pure_noise():
    def mean_draws(rhs: str) -> float:
        generator = torch.Generator().manual_seed(0)
        x = torch.zeros(1000, requires_grad=True)
        wrapper = gqc.OptimizerWrapperNormTest(
            torch.optim.SGD([x], lr=0.0), 1.05, rhs=rhs, max_draws=32
        )
        draws = []
        while len(draws) < 20:
            backward([x], [torch.randn(1000, generator=generator)])
            if wrapper.step():
                draws.append(wrapper.last_num_draws)
        return sum(draws) / len(draws)

    assert mean_draws("published") < 4
    assert mean_draws("debiased") > 16


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=2, max_size=30),
    confidence=st.floats(0.5, 0.999),
)
def test_mht_interval_is_the_textbook_one(samples, confidence):
    mean, half = t_interval(samples, confidence, special.stdtrit)
    if len(set(samples)) == 1:  # scipy gives NaN
        assert half == pytest.approx(0.0, abs=1e-9 * abs(samples[0]))
        return
    low, high = stats.t.interval(
        confidence, len(samples) - 1, loc=stats.tmean(samples), scale=stats.sem(samples)
    )
    size = max(map(abs, samples))
    assert mean - half == pytest.approx(low, rel=1e-9, abs=1e-9 * size)
    assert mean + half == pytest.approx(high, rel=1e-9, abs=1e-9 * size)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ([2.0, 2.0], 2),  # constant: known at once
        ([-2.0, -2.0], 2),  # negative metrics work alike
        ([2.0, 2.02, 50.0, 2.0, 2.0, 2.0], 6),  # one outlier keeps the window open to max_draws
        ([0.0, 0.0], 2),  # a mean of zero is met by a width of zero only
        ([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], 6),
    ],
)
def test_mht_steps_when_the_mean_is_known(metrics, expected):
    x = torch.zeros(2, requires_grad=True)
    wrapper = gqc.OptimizerWrapperMHT(torch.optim.SGD([x], lr=0.1), max_draws=6)
    for n, value in enumerate(metrics, start=1):
        backward([x], [torch.ones(2)])
        assert wrapper.step(metric=torch.tensor(value)) is (n == expected)
    assert wrapper.statistics()["ci_low"] <= wrapper.statistics()["ci_high"]


@pytest.mark.parametrize("metric", [None, math.nan, math.inf])
@pytest.mark.parametrize(("accumulate", "lost"), [("buffer", 1), ("grad", 2)])
def test_mht_discards_a_draw_without_a_finite_metric(metric, accumulate, lost):
    x = torch.zeros(2, requires_grad=True)
    wrapper = gqc.OptimizerWrapperMHT(torch.optim.SGD([x], lr=0.1), accumulate=accumulate)
    backward([x], [torch.ones(2)])
    wrapper.step(metric=1.0)
    backward([x], [torch.ones(2)])
    with pytest.warns(UserWarning, match=r"step\(metric=loss\)"):
        assert wrapper.step(metric=metric) is False
    assert wrapper.statistics()["num_discarded"] == lost
    assert wrapper.num_draws == 2 - lost


def test_mht_without_scipy_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match=r"gqc-kit\[lab\]"):
        gqc.OptimizerWrapperMHT(torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1))


@pytest.mark.parametrize("mode", ["global", "independent"])
def test_gnr_leaves_a_zero_gradient_alone_and_does_not_step_with_it(mode):
    """With momentum and weight decay a step with a zero gradient would move the parameters."""
    x = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.9, weight_decay=0.1)
    wrapper = gqc.OptimizerWrapperGNR(optimizer, 2.0, mode)
    backward([x], [torch.tensor([3.0, 4.0, 0.0])])
    assert wrapper.step() is True
    before = x.detach().clone()
    backward([x], [torch.zeros(3)])
    assert wrapper.step() is False
    assert torch.equal(x, before)
    backward([x], [torch.tensor([0.0, 0.0, 5.0])])
    assert wrapper.step() is True
    assert wrapper.last_num_draws == 2


@pytest.mark.parametrize("mode", ["global", "independent"])
@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", ["least", 1e-24, 4e-23, 1e-17, 1e19, 1e20, "most"])
def test_gnr_rescales_what_cannot_be_squared(size, dtype, accumulate, mode):
    """The squares of such elements overflow float32 or fall below its smallest number."""
    limits = torch.finfo(dtype)
    size = {"least": limits.smallest_normal / 8, "most": limits.max}.get(size, size)
    x = torch.zeros(2, dtype=dtype, requires_grad=True)
    wrapper = gqc.OptimizerWrapperGNR(
        torch.optim.SGD([x], lr=1.0), 10.0, mode, accumulate=accumulate
    )
    grad = torch.tensor([0.6 * size, -0.8 * size], dtype=dtype)
    backward([x], [grad])
    assert wrapper.step() is True
    expected = grad.double() / grad.double().abs().max()
    expected *= -10.0 / torch.linalg.vector_norm(expected)
    rtol = 2 * max(limits.eps, 2**-23)  # powers of two do not round: the norm does, the product
    torch.testing.assert_close(x.detach().double(), expected, rtol=rtol, atol=0)


def test_gnr_rescales_each_tensor_by_its_own_norm_whatever_the_others_are():
    sizes = [1.0, 1e-42, 1e-24, 0.0, 1e5]
    params = [torch.zeros(2, requires_grad=True) for _ in sizes]
    wrapper = gqc.OptimizerWrapperGNR(torch.optim.SGD(params, lr=1.0), 1.0, "independent")
    backward(params, [torch.tensor([size, 0.0]) for size in sizes])
    assert wrapper.step() is True
    for param, size in zip(params, sizes, strict=True):
        torch.testing.assert_close(param.detach(), torch.tensor([-1.0 if size else 0.0, 0.0]))


@pytest.mark.parametrize("mode", ["global", "independent"])
def test_gnr_reads_a_tiny_scaled_gradient_too(mode):
    """Draws that add up to zero wait; under a GradScaler the window's sum is the scaled one."""
    x = torch.zeros(2, requires_grad=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD([x], lr=1.0)
    wrapper = gqc.OptimizerWrapperGNR(optimizer, 1.0, mode, grad_scaler=scaler)
    for factor, stepped in ((0.0, False), (1e-30, True)):
        scaler.scale((x * torch.tensor([3.0, 4.0]) * factor).sum()).backward()
        assert wrapper.step() is stepped
    torch.testing.assert_close(x.detach(), torch.tensor([-0.6, -0.8]))
