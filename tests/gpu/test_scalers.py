"""The variance gradient scaler on a card: V, factors and waits as on the CPU."""

from __future__ import annotations

import pytest
import torch
from gpu.streams import waits
from torch import Tensor
from vgs_reference import PublishedReference, debiased_ratio, feed, normal, percentile

import gqc
from gqc.scalers import VarianceGradientScaler

SHAPES = ((7, 5), (300,), (70_000,), (1,))
PUBLISHED = ["spatial", "tensor_spatial", "tensor_mean", "mean_square"]
ESTIMATORS = ["sketch", "elementwise", *PUBLISHED]
# Sums of 70,000 float32 numbers in another order differ by some 1e-5, and V is a ratio of two.
ROUNDING = 1e-4


def make(device: torch.device, estimator: str, **options):
    params = [torch.zeros(shape, device=device, requires_grad=True) for shape in SHAPES]
    return params, VarianceGradientScaler(params, estimator=estimator, **options)


def steps(num: int, device: torch.device | str = "cpu") -> list[list[Tensor]]:
    draws = [
        [1 + normal(*shape, seed=10 * t + i) for i, shape in enumerate(SHAPES)] for t in range(num)
    ]
    return [[g.to(device) for g in grads] for grads in draws]


@pytest.mark.parametrize("estimator", ["elementwise", *PUBLISHED])
def test_v_and_the_factor_are_those_of_the_slow_reference(estimator, device):
    options = {"alpha": 0.5, "warmup_steps": 0, "variance_cap": None, "min_scaling_factor": 1e-4}
    options |= {"alpha": 0.0} if estimator in PUBLISHED else {}  # they read what scaling leaves
    params, scaler = make(device, estimator, **options)
    past: list[list[Tensor]] = []
    reference = PublishedReference(estimator)
    for grads in steps(12):
        [factor] = feed(scaler, params, [[g.to(device) for g in grads]])
        if past and estimator == "elementwise":
            ratios = [debiased_ratio(list(tensor), 0.99) for tensor in zip(*past, strict=True)]
            expected = 1 / (1 + 0.5 * percentile(ratios, 0.9))
            assert factor == pytest.approx(expected, rel=ROUNDING)
            for param, grad in zip(params, grads, strict=True):
                torch.testing.assert_close(param.grad.cpu(), factor * grad, rtol=1e-6, atol=0)
        past.append(grads)
        reference.update(grads)
    if estimator in PUBLISHED:
        expected = percentile(reference.variances(), 0.9)
        assert scaler.get_normalized_variance() == pytest.approx(expected, rel=ROUNDING)


def test_large_tensors_of_one_size_have_the_numbers_of_the_cpu(device):
    """On a card they are hashed together."""
    shapes = ((70_000,), (70_000,), (1 << 22,), (1 << 22,))
    found = []
    for place in ("cpu", device):
        params = [torch.zeros(shape, device=place, requires_grad=True) for shape in shapes]
        scaler = VarianceGradientScaler(params, warmup_steps=0)
        for t in range(4):
            grads = [1 + normal(*shape, seed=10 * t + i) for i, shape in enumerate(shapes)]
            feed(scaler, params, [[grad.to(place) for grad in grads]])
        found.append(scaler._estimator.read(None).ratios)
    assert found[1] == pytest.approx(found[0], rel=ROUNDING)


@pytest.mark.parametrize(
    ("estimator", "granularity"),
    [
        *(("sketch", "global"), ("sketch", "tensor")),
        *(("elementwise", "global"), ("elementwise", "tensor"), ("elementwise", "element")),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_numbers_are_those_of_the_cpu(estimator, granularity, dtype, device):
    """The signs of the sketch are the same on every device; its slow reference is on the CPU."""
    options = {"granularity": granularity, "warmup_steps": 2, "alpha": 1.0, "variance_cap": None}
    results = []
    for place in ("cpu", device):
        params, scaler = make(place, estimator, **options)
        params = [p.detach().to(dtype).requires_grad_() for p in params]
        scaler.update_parameters(params)
        factors = feed(scaler, params, steps(8, place))
        results.append((factors, scaler.metrics(), [p.grad.cpu().double() for p in params]))
    (cpu_factors, cpu_metrics, cpu_grads), (factors, metrics, grads) = results
    assert factors == pytest.approx(cpu_factors, rel=ROUNDING)
    assert metrics == pytest.approx(cpu_metrics, rel=ROUNDING)
    assert min(factors) < 0.9
    # A factor that is ROUNDING off may fall on the other side of a rounding to 16 bit.
    error = ROUNDING + (0 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)
    for a, b in zip(grads, cpu_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=error, atol=error * 1e-2)


@pytest.mark.parametrize(
    "options",
    [
        *({"estimator": estimator} for estimator in ESTIMATORS),
        {"granularity": "tensor"},
        {"granularity": "group"},
        {"granularity": "element", "estimator": "elementwise"},
        {"aggregate": "numel_weighted"},
        {"track_spatial": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_host_waits_once_a_step_and_not_during_warmup(options, device):
    params = [torch.zeros(shape, device=device, requires_grad=True) for shape in SHAPES]
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    scaler = VarianceGradientScaler(groups, warmup_steps=6, **options)
    for t, grads in enumerate(steps(12, device)):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        with waits(device) as seen:
            scaler.scale_gradients()
            scaler.step()
        if t not in (0, 6):  # what is made once: statistics, and the mask of each group
            assert len(seen) == (1 if t > 6 else 0), (t, seen)
    with waits(device) as seen:
        scaler.metrics()
    assert len(seen) == 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_checkpoint_that_was_read_on_the_cpu_goes_on_bit_for_bit(estimator, device):
    params, scaler = make(device, estimator, warmup_steps=2)
    feed(scaler, params, steps(5, device))
    state = scaler.state_dict()
    on_cpu = {**state, "statistics": _to_cpu(state["statistics"])}
    others, resumed = make(device, estimator, warmup_steps=2)
    resumed.load_state_dict(on_cpu)
    more = steps(9, device)[5:]
    expected = feed(scaler, params, more)
    assert feed(resumed, others, more) == expected
    assert min(expected) < 1


def _to_cpu(state):
    if isinstance(state, dict):
        return {key: _to_cpu(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_to_cpu(value) for value in state]
    return state.cpu() if isinstance(state, Tensor) else state


@pytest.mark.parametrize("estimator", ["sketch", "elementwise"])
@pytest.mark.parametrize("fused", [True, False])
def test_the_wrapper_is_the_scaler_in_a_plain_loop(estimator, fused, device):
    options = {"estimator": estimator, "warmup_steps": 3, "alpha": 1.0}
    ours = [torch.zeros(shape, device=device, requires_grad=True) for shape in SHAPES]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    wrapper = gqc.OptimizerWrapperVGS(torch.optim.AdamW(ours, lr=0.05, fused=fused), **options)
    scaler = VarianceGradientScaler(theirs, **options)
    optimizer = torch.optim.AdamW(theirs, lr=0.05, fused=fused)
    for grads in steps(8, device):
        for a, b, grad in zip(ours, theirs, grads, strict=True):
            a.grad, b.grad = grad.clone(), grad.clone()
        assert wrapper.step() is True
        scaler.scale_gradients()
        optimizer.step()
        scaler.step()
    assert wrapper.scaler.get_scaling_factor() < 1
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
