"""Diagnostics against slow references, real optimizers and streams whose answers are known."""

import itertools
import json
import math

import diagnostics_ranks
import pytest
import torch
from problems import backward, global_norm, mean_of, parameters, stream

import gqc
from gqc.diagnostics import (
    ConsecutiveCosine,
    NoisePerTensor,
    RunningNorm,
    cosine,
    expected_momentum_angle,
    expected_norm,
    momentum_angle,
)


def slow_cosine(a, b):
    """Element by element in float64, from the definition."""
    x = torch.cat([t.double().flatten() for t in a])
    y = torch.cat([t.double().flatten() for t in b])
    return float((x * y).sum() / x.square().sum().sqrt() / y.square().sum().sqrt())


def degrees(a, b):
    return math.degrees(math.acos(slow_cosine(a, b)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cosine_is_its_definition_over_all_tensors(dtype):
    a, b = ([g.to(dtype) for g in grads] for grads in stream(2))
    # 25 products summed in float32 (float64): rounding stays below 25 eps
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert cosine(a, b) == pytest.approx(slow_cosine(a, b), abs=25 * eps)
    assert cosine(a, [-3 * g for g in a]) == pytest.approx(-1.0, abs=25 * eps)
    mixed = [b[0].double(), b[1].float(), b[2].bfloat16()]
    assert cosine(a, mixed) == pytest.approx(slow_cosine(a, mixed), abs=1e-5)


def test_cosine_of_no_direction_is_none_and_never_beyond_one():
    a = stream(1)[0]
    zero = [torch.zeros_like(g) for g in a]
    assert cosine(a, zero) is None
    assert cosine([], []) is None
    assert cosine(a, [torch.full_like(g, math.nan) for g in a]) is None
    assert cosine(a, [torch.full_like(g, math.inf) for g in a]) is None
    assert all(abs(cosine([g], [g])) <= 1.0 for g in a)
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        cosine(a, a[:1])


@pytest.mark.parametrize("make", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax"])
@pytest.mark.parametrize("maximize", [False, True])
def test_angle_before_a_step_is_that_to_the_momentum_the_step_leaves(make, maximize):
    params = parameters()
    optimizer = getattr(torch.optim, make)(params, lr=0.01, maximize=maximize)
    angles, after = [], []
    for grads in stream(12):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        before = [optimizer.state[p]["exp_avg"].clone() for p in params if optimizer.state[p]]
        angles.append(momentum_angle(optimizer))
        without = momentum_angle(optimizer, include_gradient=False)
        optimizer.step()
        sign = -1 if maximize else 1
        raw = [sign * g for g in grads]
        after.append(degrees(raw, [optimizer.state[p]["exp_avg"] for p in params]))
        assert without == (pytest.approx(degrees(raw, before), abs=1e-3) if before else None)
    assert angles[0] is None
    assert angles[1:] == pytest.approx(after[1:], abs=1e-3)  # acos of float32 dots, far from 0


def test_bias_correction_counts_where_parameters_took_different_numbers_of_steps():
    params = parameters()
    optimizer = torch.optim.Adam(params, lr=0.01, betas=(0.9, 0.999))
    for i, grads in enumerate(stream(6)):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone() if param is params[0] or i % 3 == 0 else None
        optimizer.step()
    grads = stream(1, seed=9)[0]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    moments = [optimizer.state[p]["exp_avg"] for p in params]
    steps = [float(optimizer.state[p]["step"]) for p in params]
    assert steps == [6, 2, 2]
    for include in (False, True):
        used = [0.9 * m + 0.1 * g if include else m for m, g in zip(moments, grads, strict=True)]
        hats = [m / (1 - 0.9 ** (t + include)) for m, t in zip(used, steps, strict=True)]
        got = momentum_angle(optimizer, include_gradient=include, bias_corrected=True)
        assert got == pytest.approx(degrees(grads, hats), abs=1e-3)
        plain = momentum_angle(optimizer, include_gradient=include)
        assert plain == pytest.approx(degrees(grads, used), abs=1e-3)
        assert abs(got - plain) > 0.5


def test_angle_in_a_hook_sees_what_the_wrapped_optimizer_steps_with():
    """And it reads a wrapper as it reads an optimizer, and skips parameters without a gradient."""
    params = parameters()
    wrapper = gqc.OptimizerWrapperSBC(torch.optim.AdamW(params, lr=0.01), 1, 2, accumulate="grad")
    optimizer, seen = wrapper.optimizer, []
    optimizer.register_step_pre_hook(lambda opt, *_: seen.append(momentum_angle(opt)))
    draws = stream(6)
    for grads in draws:
        backward(params, [grads[0], None, grads[2]])
        before = momentum_angle(wrapper, include_gradient=False)
        moments = [optimizer.state[p]["exp_avg"].clone() for p in params if optimizer.state.get(p)]
        wrapper.step()
    mean = [(a + b) / 2 for a, b in zip(draws[4], draws[5], strict=True)]
    mean = [mean[0], mean[2]]
    used = [0.9 * m + 0.1 * g for m, g in zip(moments, mean, strict=True)]
    assert len(seen) == 3
    assert seen[-1] == pytest.approx(degrees(mean, used), abs=1e-3)
    assert before == pytest.approx(degrees(mean, moments), abs=1e-3)  # a sum has its mean's angle
    assert momentum_angle(wrapper) is None  # no gradients now


def test_angle_needs_a_momentum():
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    for grads in stream(2):
        backward(params, grads)
        optimizer.step()
    with pytest.raises(TypeError, match="SGD keeps no exp_avg"):
        momentum_angle(optimizer)


def test_measuring_changes_nothing():
    params = parameters()
    optimizer = torch.optim.Adam(params, lr=0.01)
    for grads in stream(3):
        backward(params, grads)
        optimizer.step()
    kept = [(p.grad.clone(), optimizer.state[p]["exp_avg"].clone()) for p in params]
    for corrected in (False, True):
        momentum_angle(optimizer, bias_corrected=corrected)
    for param, (grad, momentum) in zip(params, kept, strict=True):
        assert torch.equal(param.grad, grad)
        assert torch.equal(optimizer.state[param]["exp_avg"], momentum)


def test_pure_noise_gives_arcsin_beta_and_a_clean_gradient_gives_zero():
    assert expected_momentum_angle(math.inf, 0.9) == pytest.approx(math.degrees(math.asin(0.9)))
    assert expected_momentum_angle(math.inf, 0.9) == pytest.approx(64.158, abs=1e-3)
    assert expected_momentum_angle(math.inf, 0.9, include_gradient=False) == 90.0
    assert expected_momentum_angle(1e12, 0.5) == pytest.approx(30.0)
    assert expected_momentum_angle(0.0, 0.9) == 0.0
    assert expected_momentum_angle(7.0, 0.0) == pytest.approx(0.0, abs=1e-6)  # m is g itself
    for arguments in ((-1.0, 0.9), (math.nan, 0.9), (1.0, 1.0), (1.0, math.nan)):
        with pytest.raises(ValueError, match="expected"):
            expected_momentum_angle(*arguments)


@pytest.mark.parametrize("beta", [0.5, 0.9])
@pytest.mark.parametrize("noise_scale", [0.5, 10.0, math.inf])
def test_adam_on_a_stream_of_known_noise_has_the_expected_angle(beta, noise_scale):
    dimension = 20_000
    generator = torch.Generator().manual_seed(3)
    signal = torch.randn(dimension, generator=generator)
    signal *= 0.0 if math.isinf(noise_scale) else 1 / signal.norm()
    deviation = math.sqrt((1.0 if math.isinf(noise_scale) else noise_scale) / dimension)
    x = torch.zeros(dimension, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.0, betas=(beta, 0.999))
    angles = {True: [], False: []}
    for step in range(80):
        x.grad = signal + deviation * torch.randn(dimension, generator=generator)
        if step >= 60:  # beta^60 < 0.002: m has forgotten that it started at 0
            for include, values in angles.items():
                values.append(momentum_angle(optimizer, include_gradient=include))
        optimizer.step()
    for include, values in angles.items():
        # A cosine of two gradients in d dimensions scatters by at most about 1/sqrt(d) = 0.007, an
        # angle by that over its sine (>= 0.27 here); 20 values, of which m shares most: 3 of these
        # at 10 effectively independent ones is 1.4 degrees at worst.
        expected = expected_momentum_angle(noise_scale, beta, include_gradient=include)
        tolerance = 3 * math.degrees(1 / math.sqrt(dimension) / math.sin(math.radians(expected)))
        assert sum(values) / len(values) == pytest.approx(expected, abs=tolerance / math.sqrt(10))


def test_consecutive_cosines_are_those_of_neighbours_whatever_happens_to_the_gradients():
    draws = stream(8)
    measure = ConsecutiveCosine()
    got = []
    for grads in draws:
        lent = [g.clone() for g in grads]
        got.append(measure.update(lent))
        for g in lent:
            g.fill_(math.nan)  # as an optimizer that reuses its gradients might
    assert got[0] is None
    expected = [slow_cosine(a, b) for a, b in itertools.pairwise(draws)]
    assert got[1:] == pytest.approx(expected, abs=1e-5)
    measure.reset()
    assert measure.update(draws[0][:1]) is None
    with pytest.raises(ValueError, match="expected equal ones"):
        measure.update(draws[0])


def test_consecutive_cosine_in_noise_is_one_over_one_plus_r():
    dimension, noise_scale = 20_000, 4.0
    generator = torch.Generator().manual_seed(5)
    signal = torch.randn(dimension, generator=generator)
    signal /= signal.norm()
    measure = ConsecutiveCosine()
    values = [
        measure.update(
            [signal + math.sqrt(4 / dimension) * torch.randn(dimension, generator=generator)]
        )
        for _ in range(101)
    ][1:]
    # one cosine scatters by at most 1/sqrt(d) = 0.007 (and is biased by about 1/d); mean of 100:
    # 0.0007, doubled since neighbours share a gradient; 3 of them
    assert sum(values) / 100 == pytest.approx(1 / (1 + noise_scale), abs=3 * 2 * 0.0007)


def test_running_norm_is_the_norm_of_the_mean_of_what_came():
    draws = stream(9)
    measure = RunningNorm()
    for n, grads in enumerate(draws, start=1):
        expected = global_norm(mean_of(draws[:n]))
        assert measure.update(grads) == pytest.approx(expected, rel=1e-5)
    assert len(measure.norms) == 9
    assert measure.norms[0] == pytest.approx(global_norm(draws[0]), rel=1e-6)
    measure.reset()
    assert measure.update(draws[3]) == pytest.approx(global_norm(draws[3]), rel=1e-6)


def test_running_norm_takes_missing_and_sixteen_bit_gradients():
    measure = RunningNorm()
    one = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(1024):  # a bf16 sum of ones stops at 256
        measure.update([one, None])
    assert measure.norms[-1] == 1.0
    assert measure.update([None, torch.full((1,), 1025.0)]) == pytest.approx(
        math.hypot(1024 / 1025, 1.0)
    )
    assert math.isnan(measure.update([torch.full((1,), math.nan), None]))


def test_running_norm_falls_as_expected_and_keeps_one_gradient():
    dimension, noise_trace = 10_000, 16.0
    generator = torch.Generator().manual_seed(2)
    signal = torch.randn(dimension, generator=generator)
    signal /= signal.norm()
    measure = RunningNorm()
    for _ in range(64):
        noise = torch.randn(dimension, generator=generator)
        measure.update([signal + math.sqrt(noise_trace / dimension) * noise])
    for n, norm in enumerate(measure.norms, start=1):
        expected = expected_norm(1.0, noise_trace, n)
        # Var |G_n|^2 = 4 |G|^2 T/(d n) + 2 T^2/(d n^2); the norm by that over 2 |G_n|; 4 errors
        variance = 4 * noise_trace / (dimension * n) + 2 * noise_trace**2 / (dimension * n**2)
        assert norm == pytest.approx(expected, abs=4 * math.sqrt(variance) / (2 * expected))
    assert sum(t.numel() for t in measure._sums.values()) == dimension
    for bad in ((-1.0, 1.0, 1), (1.0, math.nan, 1), (1.0, 1.0, 0)):
        with pytest.raises(ValueError, match="expected"):
            expected_norm(*bad)


def slow_moments(windows, k):
    """Textbook: sample covariance, and the squared mean less its noise, averaged over windows."""
    signals, traces = [], []
    for window in windows:
        draws = torch.stack([grads[k].double().flatten() for grads in window])
        mean, n = draws.mean(0), len(draws)
        traces.append(float((draws - mean).square().sum() / (n - 1)))
        signals.append(float(mean.square().sum()) - traces[-1] / n)
    weights = [0.9**age for age in reversed(range(len(windows)))]
    return [
        sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        for values in (signals, traces)
    ]


def test_noise_per_tensor_is_the_sample_covariance_of_each():
    draws = stream(20)
    windows = [draws[0:4], draws[4:6], draws[6:13], draws[13:20]]
    measure = NoisePerTensor(["a", "b", "c"], decay=0.9)
    assert measure.noise_scale() == measure.moments() == {"a": None, "b": None, "c": None}
    for window in windows:
        for grads in window:
            measure.update(grads)
        measure.close()
    for k, name in enumerate("abc"):
        signal, trace = slow_moments(windows, k)
        # differences of float32 squares that are each of the size of the trace
        assert measure.moments()[name] == pytest.approx((signal, trace), abs=1e-5 * trace)
        scale = measure.noise_scale()[name]
        assert scale == (pytest.approx(trace / signal, rel=1e-3) if signal > 0 else None)


def test_noise_per_tensor_of_known_noise():
    """R = 1 and 20 in two tensors, and noise alone in a third."""
    d, n, num_windows = 4000, 8, 60
    generator = torch.Generator().manual_seed(4)
    signals = [torch.randn(d, generator=generator) for _ in range(3)]
    signals = [s * size / s.norm() for s, size in zip(signals, (1.0, 1.0, 0.0), strict=True)]
    deviations = [math.sqrt(trace / d) for trace in (1.0, 20.0, 1.0)]
    measure = NoisePerTensor(["clean", "noisy", "noise"], decay=0.99)
    for _ in range(num_windows):
        for _ in range(n):
            noise = [torch.randn(d, generator=generator) for _ in range(3)]
            measure.update([s + v * e for s, v, e in zip(signals, deviations, noise, strict=True)])
        measure.close()
    for name, truth in (("clean", 1.0), ("noisy", 20.0)):
        # decay 0.99 weighs 60 windows nearly alike: at least 55 effective ones
        error = gqc.noise.two_batch_errors(1.0, truth, n, d, 55)[2]
        assert measure.noise_scale()[name] == pytest.approx(truth, rel=3 * error)
    signal, trace = measure.moments()["noise"]
    assert trace == pytest.approx(1.0, rel=0.01)
    assert abs(signal) < 3 * math.sqrt(2 / (d * n * (n - 1)) / 55)


def test_noise_per_tensor_counts_a_missing_gradient_as_zero():
    plain, sparse = NoisePerTensor(["a", "b"]), NoisePerTensor(["a", "b"])
    for i, grads in enumerate(stream(8)):
        a, b = grads[0], grads[1]
        plain.update([a, b if i % 2 else torch.zeros_like(b)])
        sparse.update([a, b if i % 2 else None])
    plain.close()
    sparse.close()
    assert plain.moments() == sparse.moments()
    for _ in range(2):
        sparse.update([None, None])
    sparse.close()
    assert plain.moments() == sparse.moments()  # nothing was measured


def test_noise_per_tensor_drops_a_window_with_a_nan_and_counts_it():
    measure = NoisePerTensor(["a", "b", "c"])
    draws = stream(4)
    for grads in draws:
        measure.update(grads)
    measure.close()
    before = measure.moments()
    measure.update([torch.full_like(g, math.nan) for g in draws[0]])
    measure.update(draws[0])
    measure.close()
    assert measure.moments() == before
    assert measure.num_discarded == 1
    assert measure.num_draws == 0


def test_noise_per_tensor_resumes_between_windows(tmp_path):
    draws = stream(12)
    whole, first, second = (NoisePerTensor(["a", "b", "c"]) for _ in range(3))

    def feed(measure, windows):
        for start in windows:
            for grads in draws[start : start + 3]:
                measure.update(grads)
            measure.close()

    feed(whole, (0, 3, 6, 9))
    feed(first, (0, 3))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.update(draws[0])  # an open window is dropped
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    feed(second, (6, 9))
    assert second.moments() == whole.moments()
    with pytest.raises(ValueError, match="expected the same names"):
        NoisePerTensor(["a"]).load_state_dict(first.state_dict())


def test_noise_per_tensor_refuses_bad_input():
    for names in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="all different"):
            NoisePerTensor(names)
    with pytest.raises(ValueError, match="decay"):
        NoisePerTensor(["a"], decay=1.0)
    measure = NoisePerTensor(["a", "b"])
    with pytest.raises(ValueError, match="1 gradients: expected 2"):
        measure.update([torch.ones(2)])
    measure.update([torch.ones(2), None])
    with pytest.raises(ValueError, match="at least two microbatches"):
        measure.close()


def test_two_ranks_measure_sharded_gradients_as_one_process_does(tmp_path):
    torch.multiprocessing.spawn(diagnostics_ranks.main, (str(tmp_path),), nprocs=2)
    expected = diagnostics_ranks.measure(diagnostics_ranks.gradients())
    for rank in range(2):
        got = json.loads((tmp_path / f"rank{rank}").read_text())
        for name, values in expected.items():
            # sums of at most 18 float32 squares in another order
            assert got[name] == pytest.approx(values, rel=1e-5, abs=1e-5)
