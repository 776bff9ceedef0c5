"""Diagnostics against slow references, real optimizers and streams whose answers are known."""

import math

import pytest
import torch
from problems import backward, parameters, stream

import gqc
from gqc.diagnostics import cosine, momentum_angle
from gqc_lab.studies.pretraining.gradient_angles import expected_momentum_angle


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
    with pytest.raises(TypeError, match="gradient 1 is None: expected a tensor"):
        cosine([a[0], None], [a[0], None])
    assert cosine((g for g in a), (g for g in a)) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_constant", [False, True])
def test_angles_of_large_tensors_are_those_of_small_ones(dtype, is_constant):
    generator = torch.Generator().manual_seed(0)
    x = torch.full((2**24,), 0.1) if is_constant else torch.randn(2**24, generator=generator)
    x = x.to(dtype)
    assert cosine([x], [x]) == pytest.approx(1.0, abs=2e-7)
    y = x.float() + 0.03 * torch.randn(2**24, generator=generator)
    assert math.degrees(math.acos(cosine([x], [y]))) == pytest.approx(degrees([x], [y]), rel=0.01)
    param = torch.zeros(2**24, requires_grad=True)
    optimizer = torch.optim.AdamW([param], lr=0.0)
    for _ in range(2):
        param.grad = x.float()
        optimizer.step()
    assert momentum_angle(optimizer) < 0.05


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
    momentum_angle(optimizer)
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
