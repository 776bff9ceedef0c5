"""The variance gradient scaler as a wrapper: the same as the scaler in a plain loop."""

import copy
import math
import pickle

import pytest
import torch
from problems import backward, parameters, stream

import gqc
from gqc.scalers import VarianceGradientScaler
from gqc.wrappers.vgs import OptimizerWrapperVGS

ESTIMATORS = ["sketch", "elementwise", "spatial", "tensor_spatial", "tensor_mean", "mean_square"]


def adamw(params):
    return torch.optim.AdamW(params, lr=0.05)


def feed(wrapper, params, draws):
    stepped = []
    for grads in draws:
        backward(params, grads)
        stepped.append(wrapper.step())
    return stepped


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_is_the_scaler_in_a_plain_loop(estimator):
    options = {"estimator": estimator, "warmup_steps": 5, "alpha": 1.0}
    ours, theirs = parameters(), parameters()
    wrapper, optimizer = OptimizerWrapperVGS(adamw(ours), **options), adamw(theirs)
    scaler = VarianceGradientScaler(theirs, **options)
    draws = stream(30)
    assert all(feed(wrapper, ours, draws))
    factors = []
    for grads in draws:
        backward(theirs, grads)
        factors.append(scaler.scale_gradients())
        optimizer.step()
        scaler.step()
        optimizer.zero_grad()
    assert equal(ours, theirs)
    assert min(factors) < 1
    assert wrapper.scaler.metrics() == scaler.metrics()


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"enabled": False}, {"warmup_steps": 100}])
def test_identity_limits_are_bitwise_the_bare_optimizer(options):
    ours, bare = parameters(), parameters()
    wrapper, optimizer = OptimizerWrapperVGS(adamw(ours), **options), adamw(bare)
    draws = stream(20)
    feed(wrapper, ours, draws)
    for grads in draws:
        backward(bare, grads)
        optimizer.step()
        optimizer.zero_grad()
    assert equal(ours, bare)


def test_inside_another_wrapper_it_sees_the_mean_of_each_window():
    options = {"warmup_steps": 2, "alpha": 1.0, "estimator": "elementwise"}
    ours, theirs = parameters(), parameters()
    inner = OptimizerWrapperVGS(torch.optim.SGD(ours, lr=0.1), **options)
    wrapper = gqc.OptimizerWrapperReplay(inner, [3, 1, 2], repeat_last=True)
    optimizer = torch.optim.SGD(theirs, lr=0.1)
    scaler = VarianceGradientScaler(theirs, **options)
    draws = stream(20)
    stepped = feed(wrapper, ours, draws)
    window = []
    for grads, closes in zip(draws, stepped, strict=True):
        window.append(grads)
        if closes:
            for i, param in enumerate(theirs):
                param.grad = sum(g[i] for g in window) / len(window)
            scaler.scale_gradients()
            optimizer.step()
            scaler.step()
            window = []
    assert inner.scaler.step_count == sum(stepped) == 10
    assert inner.scaler.get_scaling_factor() < 1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # sums in another order


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("cut", [0, 1, 9])
def test_a_cut_and_resumed_run_is_bitwise_the_uncut(estimator, cut):
    options = {"estimator": estimator, "warmup_steps": 3, "min_draws": 2}
    params, draws = parameters(), stream(20)
    wrapper = OptimizerWrapperVGS(adamw(params), **options)
    feed(wrapper, params, draws[:cut])
    others = [p.detach().clone().requires_grad_() for p in params]
    other = OptimizerWrapperVGS(adamw(others), **options)
    other.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    for twin, its in ((wrapper, params), (other, others)):
        feed(twin, its, draws[cut:])
    assert equal(params, others)
    assert wrapper.statistics() == other.statistics()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_in_mid_window_goes_on_alike(copied):
    params, draws = parameters(), stream(20)
    wrapper = OptimizerWrapperVGS(adamw(params), warmup_steps=3, min_draws=2)
    feed(wrapper, params, draws[:9])
    others, other = copied((params, wrapper))
    assert other.scaler._parameters.tensors[0] is others[0]
    for twin, its in ((wrapper, params), (other, others)):
        feed(twin, its, draws[9:])
    assert equal(params, others)


@pytest.mark.parametrize("through", ["wrapper", "optimizer"])
def test_added_groups_are_scaled_too(through):
    params, new = parameters(), torch.zeros(6, requires_grad=True)
    wrapper = OptimizerWrapperVGS(adamw(params), warmup_steps=0, alpha=1.0)
    draws = stream(20)
    feed(wrapper, params, draws[:10])
    before = wrapper.scaler._estimator.count.tolist()
    target = wrapper if through == "wrapper" else wrapper.optimizer
    target.add_param_group({"params": [new]})
    feed(wrapper, [*params, new], [[*grads, torch.ones(6)] for grads in draws[10:]])
    assert wrapper.scaler._estimator.count.tolist() == [b + 10 for b in before] + [10]


def test_a_non_finite_draw_never_reaches_the_scaler():
    params, draws = parameters(), stream(10)
    wrapper = OptimizerWrapperVGS(adamw(params))
    feed(wrapper, params, draws[:5])
    backward(params, [torch.full_like(p, math.nan) for p in params])
    with pytest.warns(UserWarning, match="NaN"):
        assert not wrapper.step()
    assert wrapper.scaler.num_skipped == 0
    assert wrapper.scaler.step_count == 5
    assert wrapper.statistics()["num_discarded"] == 1


def test_statistics_hold_the_metrics_with_the_names_that_the_optimizer_has():
    model = torch.nn.Linear(4, 3)
    wrapper = OptimizerWrapperVGS(torch.optim.AdamW(model.named_parameters()))
    feed(wrapper, list(model.parameters()), [[torch.ones(3, 4), torch.ones(3)]])
    statistics = wrapper.statistics()
    assert statistics["steps"] == 1
    assert statistics["vgs/step_count"] == 1
    assert "vgs/normalized_variance/weight" in statistics


def test_state_of_another_estimator_changes_nothing():
    params, draws = parameters(), stream(10)
    wrapper = OptimizerWrapperVGS(adamw(params))
    feed(wrapper, params, draws)
    state = OptimizerWrapperVGS(adamw(parameters()), estimator="elementwise").state_dict()
    before = repr(wrapper.state_dict())
    with pytest.raises(ValueError, match="'elementwise' given to 'sketch'"):
        wrapper.load_state_dict(state)
    assert repr(wrapper.state_dict()) == before


def test_unknown_and_bad_options_are_refused():
    with pytest.raises(TypeError, match="alhpa"):
        OptimizerWrapperVGS(adamw(parameters()), alhpa=0.1)
    with pytest.raises(ValueError, match=r"alpha=-1"):
        OptimizerWrapperVGS(adamw(parameters()), alpha=-1)
    with pytest.raises(ValueError, match="min_draws=0"):
        OptimizerWrapperVGS(adamw(parameters()), min_draws=0)
