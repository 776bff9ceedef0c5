"""Clipping by total, group and tensor: torch's own function group by group, and with wrappers."""

import copy
import math
import pickle

import pytest
import torch
from problems import backward, global_norm, parameters, stream
from torch import nn

import gqc
from gqc.clipping import (
    clip_before_step,
    clip_grad_norm_per_group_,
    clip_grad_norm_per_tensor_,
    clip_grad_norm_total_,
)


def make_groups(dtype=torch.float32, scale=1.0, seed=1):
    """Three groups: of two tensors, of one, and of one without a gradient."""
    params = parameters(dtype)
    for param, grad in zip(params, stream(1, seed=seed)[0], strict=True):
        param.grad = (scale * grad).to(dtype)
    empty = torch.zeros(2, requires_grad=True)
    return [{"params": params[:2]}, {"params": params[2:]}, {"params": [empty]}]


def tensors(groups):
    return [p for g in groups for p in g["params"]]


def assert_same_gradients(left, right):
    for a, b in zip(tensors(left), tensors(right), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_norm", [1e-3, 0.3, 5.0, 1e6, math.inf])
def test_per_group_is_torch_group_by_group_bitwise(dtype, max_norm):
    ours, theirs = make_groups(dtype), make_groups(dtype)
    norms = clip_grad_norm_per_group_(ours, max_norm)
    expected = [nn.utils.clip_grad_norm_(g["params"], max_norm) for g in theirs]
    assert norms.tolist() == [float(n) for n in expected]
    assert norms.shape == (3,)
    assert norms[2] == 0
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("max_norm", [1e-3, 0.3, 5.0, math.inf])
def test_per_tensor_and_total_are_torch_bitwise(max_norm):
    ours, theirs = make_groups(), make_groups()
    norms = clip_grad_norm_per_tensor_(ours, max_norm)
    present = [p for p in tensors(theirs) if p.grad is not None]
    assert norms.tolist() == [float(nn.utils.clip_grad_norm_([p], max_norm)) for p in present]
    assert_same_gradients(ours, theirs)
    ours, theirs = make_groups(), make_groups()
    norms = clip_grad_norm_total_(ours, max_norm)
    assert norms.tolist() == [float(nn.utils.clip_grad_norm_(tensors(theirs), max_norm))]
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_norms_are_bounded_and_directions_kept(dtype):
    groups, before = make_groups(dtype), make_groups(dtype)
    norms = clip_grad_norm_per_group_(groups, 0.3)
    rounding = torch.finfo(dtype).eps
    for group, old, norm in zip(groups[:2], before[:2], norms.tolist()[:2], strict=True):
        grads, old_grads = ([p.grad for p in g["params"]] for g in (group, old))
        assert norm == pytest.approx(global_norm(old_grads), rel=1e-6)
        assert global_norm(grads) == pytest.approx(0.3, rel=4 * rounding + 1e-5)
        for grad, old_grad in zip(grads, old_grads, strict=True):
            expected = old_grad.double() * (0.3 / norm)
            torch.testing.assert_close(grad.double(), expected, rtol=2 * rounding, atol=1e-6)


def test_it_takes_an_optimizer_its_groups_or_lists():
    made = [make_groups() for _ in range(4)]
    given = [torch.optim.SGD(made[0], lr=0.1), made[1], [g["params"] for g in made[2]]]
    for of in given:
        clip_grad_norm_per_group_(of, 0.3)
    assert_same_gradients(made[0], made[1])
    assert_same_gradients(made[2], made[1])
    clip_grad_norm_total_(iter(tensors(made[3])), 0.3)  # bare parameters are one group
    assert global_norm([p.grad for p in tensors(made[3])[:3]]) == pytest.approx(0.3, rel=1e-5)


def test_parameters_are_taken_as_optimizers_take_them():
    """One by itself in its group, beside a list, with names."""
    made = [make_groups() for _ in range(4)]
    lists = [[g["params"] for g in groups] for groups in made]
    single = [*lists[0][:1], *lists[0][1], lists[0][2]]
    named = [[(f"p{i}", p) for i, p in enumerate(params)] for params in lists[1]]
    for of in (single, named, [{"params": lists[2][0]}, {"params": lists[2][1][0]}]):
        norms = clip_grad_norm_per_group_(of, 0.3)
        assert norms[1] == clip_grad_norm_per_group_(made[3], math.inf)[1]
    clip_grad_norm_per_group_(made[3], 0.3)
    for groups in made[:3]:
        assert_same_gradients(groups, made[3])
    pairs = list(nn.Linear(2, 1).named_parameters())
    assert clip_grad_norm_per_group_(pairs, 0.3).shape == (1,)
    with pytest.raises(TypeError, match="a group holds int, str: expected parameters"):
        clip_grad_norm_per_group_([[3, "weight"]], 0.3)


def test_a_closure_would_be_clipped_too_early():
    params = parameters()
    start = [p.detach().clone() for p in params]

    def closure():
        for param, grad in zip(params, DRAWS[0], strict=True):
            param.grad = grad.clone()

    optimizer = sgd_groups(params)
    clip_before_step(optimizer, 0.3)
    wrapper = gqc.OptimizerWrapperSBC(sgd_groups(params), 1, 1)
    clip_before_step(wrapper, 0.3)
    steps = (optimizer.step, wrapper.step, lambda make: optimizer.step(closure=make))
    for step in steps:
        with pytest.raises(RuntimeError, match=r"step\(closure\): gradients are clipped before"):
            step(closure)
    assert all(torch.equal(a, b) for a, b in zip(params, start, strict=True))


def test_groups_without_any_gradient():
    lone = [torch.zeros(2, requires_grad=True)]
    assert clip_grad_norm_per_group_([lone, lone], 0.3).tolist() == [0, 0]
    assert clip_grad_norm_per_tensor_([lone], 0.3).tolist() == []
    assert clip_grad_norm_total_([], 0.3).tolist() == [0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norms_that_are_not_finite(bad):
    groups = make_groups()
    groups[1]["params"][0].grad[0, 0, 0] = bad
    before = [None if p.grad is None else p.grad.clone() for p in tensors(groups)]
    with pytest.raises(RuntimeError, match=r"gradient norms \[1\] of 3 are NaN or infinite"):
        clip_grad_norm_per_group_(groups, 0.3, error_if_nonfinite=True)
    for param, grad in zip(tensors(groups), before, strict=True):
        assert grad is None or torch.equal(param.grad.nan_to_num(7), grad.nan_to_num(7))
    theirs = make_groups()
    theirs[1]["params"][0].grad[0, 0, 0] = bad
    clip_grad_norm_per_group_(groups, 0.3)
    for group in theirs:
        nn.utils.clip_grad_norm_(group["params"], 0.3)
    for a, b in zip(tensors(groups)[:3], tensors(theirs)[:3], strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_bad_max_norm(max_norm):
    with pytest.raises(ValueError, match=r"max_norm=.*: expected > 0; math.inf only measures"):
        clip_grad_norm_per_group_(make_groups(), max_norm)
    with pytest.raises(ValueError, match="max_norm="):
        clip_before_step(torch.optim.SGD(parameters(), 0.1), max_norm)


def test_sparse_gradients_are_refused():
    param = torch.zeros(3, requires_grad=True)
    param.grad = torch.ones(3).to_sparse()
    with pytest.raises(TypeError, match="sparse gradient"):
        clip_grad_norm_per_group_([[param]], 0.3)


def sgd_groups(params):
    return torch.optim.SGD([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)


def clipped(grads, max_norm):
    """Slow reference: two groups of float64 gradients, each clipped by the formula."""
    result = []
    for group in (grads[:2], grads[2:]):
        factor = min(1.0, max_norm / (global_norm(group) + 1e-6))
        result += [factor * g.double() for g in group]
    return result


def assert_stepped(params, start, steps, lr=0.1):
    """SGD went from ``start`` along the sum of the gradients ``steps``."""
    for i, (param, old) in enumerate(zip(params, start, strict=True)):
        expected = old.double() - lr * sum(g[i] for g in steps)
        torch.testing.assert_close(param.detach().double(), expected, rtol=1e-5, atol=1e-6)


def feed(wrapper, params, draws):
    for grads in draws:
        backward(params, grads)
        wrapper.step()


DRAWS = stream(6)


def test_in_the_wrapped_optimizer_the_windows_mean_is_clipped():
    params = parameters()
    start = [p.detach().clone() for p in params]
    wrapper = gqc.OptimizerWrapperSBC(sgd_groups(params), 1, 3)
    clip_before_step(wrapper.optimizer, 0.3)
    feed(wrapper, params, DRAWS)
    means = [[sum(d[i] for d in DRAWS[at : at + 3]) / 3 for i in range(3)] for at in (0, 3)]
    assert_stepped(params, start, [clipped(mean, 0.3) for mean in means])


def test_in_the_wrapper_each_microbatch_is_clipped():
    params = parameters()
    start = [p.detach().clone() for p in params]
    wrapper = gqc.OptimizerWrapperSBC(sgd_groups(params), 1, 3, accumulate="buffer")
    clip_before_step(wrapper, 0.3)
    feed(wrapper, params, DRAWS)
    each = [clipped(d, 0.3) for d in DRAWS]
    means = [[sum(d[i] for d in each[at : at + 3]) / 3 for i in range(3)] for at in (0, 3)]
    assert_stepped(params, start, means)


def test_a_sum_in_grad_cannot_be_clipped_by_microbatch():
    params = parameters()
    wrapper = gqc.OptimizerWrapperSBC(sgd_groups(params), 1, 3, accumulate="grad")
    clip_before_step(wrapper, 0.3)
    feed(wrapper, params, DRAWS[:1])  # the first is alone
    with pytest.raises(RuntimeError, match='pass accumulate="buffer" to the wrapper'):
        feed(wrapper, params, DRAWS[1:2])


def vgs(params, clip_in_wrapper):
    wrapper = gqc.OptimizerWrapperVGS(sgd_groups(params), warmup_steps=2, alpha=1.0)
    clip_before_step(wrapper if clip_in_wrapper else wrapper.optimizer, 0.3)
    return wrapper


@pytest.mark.parametrize("clip_in_wrapper", [False, True])
def test_both_orders_with_vgs(clip_in_wrapper):
    """Scaled, then clipped: the published order.  Clipped, then measured and scaled: the other."""
    params, theirs = parameters(), parameters()
    start = [p.detach().clone() for p in params]
    feed(vgs(params, clip_in_wrapper), params, DRAWS)
    scaler = gqc.VarianceGradientScaler(theirs, warmup_steps=2, alpha=1.0)
    steps, factors = [], []
    for grads in DRAWS:
        given = clipped(grads, 0.3) if clip_in_wrapper else grads
        for param, grad in zip(theirs, given, strict=True):
            param.grad = grad.float()
        factors.append(scaler.scale_gradients())
        scaler.step()
        scaled = [p.grad for p in theirs]
        steps.append([g.double() for g in scaled] if clip_in_wrapper else clipped(scaled, 0.3))
    assert min(factors) < 1
    assert_stepped(params, start, steps)
    largest = max(max(global_norm(s[:2]), global_norm(s[2:])) for s in steps[2:])
    # Clipped last, the bound is reached; scaled last, it is not.
    assert largest < 0.29 if clip_in_wrapper else largest == pytest.approx(0.3, rel=1e-4)


def test_inside_nested_wrappers_each_place_clips_what_passes_there():
    params = parameters()
    start = [p.detach().clone() for p in params]
    inner = gqc.OptimizerWrapperVGS(sgd_groups(params), warmup_steps=100)
    wrapper = gqc.OptimizerWrapperSBC(inner, 1, 3)
    clip_before_step(inner, 0.3)  # between the two: means of three, before VGS reads them
    feed(wrapper, params, DRAWS)
    means = [[sum(d[i] for d in DRAWS[at : at + 3]) / 3 for i in range(3)] for at in (0, 3)]
    assert_stepped(params, start, [clipped(mean, 0.3) for mean in means])


@pytest.mark.parametrize("clip", [clip_grad_norm_per_tensor_, clip_grad_norm_total_])
def test_one_parameter_is_clipped_once(clip):
    """As it is by itself, and where tied weights are listed twice, in one list or in two."""
    for given in (lambda p: p, lambda p: [p, p], lambda p: [[p], [p]], lambda p: iter([p])):
        param = nn.Parameter(torch.zeros(2))
        param.grad = torch.tensor([3.0, 4.0])
        assert clip(given(param), 1.0).tolist() == [5.0]
        assert param.grad.tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("values", [[1e30, 4.0], [math.inf, 4.0]])
def test_an_infinite_bound_only_measures_an_infinite_norm_too(values):
    param = nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor(values)
    assert clip_grad_norm_total_([param], math.inf).tolist() == [math.inf]
    assert torch.equal(param.grad, torch.tensor(values))


def test_a_removed_hook_clips_no_more():
    params = parameters()
    start = [p.detach().clone() for p in params]
    optimizer = sgd_groups(params)
    clip_before_step(optimizer, 0.3, "total").remove()
    feed(optimizer, params, DRAWS[:1])
    assert_stepped(params, start, [[g.double() for g in DRAWS[0]]])


def test_scaled_microbatches_are_refused():
    scaler = torch.amp.GradScaler("cpu")
    wrapper = gqc.OptimizerWrapperSBC(sgd_groups(parameters()), 1, 3, grad_scaler=scaler)
    with pytest.raises(ValueError, match="has a grad_scaler"):
        clip_before_step(wrapper, 0.3)
    with pytest.raises(ValueError, match="per='layer': expected one of total, group, tensor"):
        clip_before_step(wrapper.optimizer, 0.3, "layer")


def test_with_a_grad_scaler_the_wrapped_optimizer_clips_unscaled_gradients():
    params = parameters()
    start = [p.detach().clone() for p in params]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    wrapper = gqc.OptimizerWrapperSBC(sgd_groups(params), 1, 3, grad_scaler=scaler)
    clip_before_step(wrapper.optimizer, 0.3)
    feed(wrapper, params, [[scaler.scale(g) for g in d] for d in DRAWS[:3]])
    mean = [sum(d[i] for d in DRAWS[:3]) / 3 for i in range(3)]
    assert_stepped(params, start, [clipped(mean, 0.3)])


def test_a_fused_step_clips_what_was_unscaled_and_refuses_what_was_not():
    """``GradScaler.step`` lets it unscale within the step: the norm before would be 1024 * 5."""

    def step(prepare):
        param = nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.SGD([param], lr=1.0, fused=True)
        clip_before_step(optimizer, 1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale((param * torch.tensor([3.0, 4.0])).sum()).backward()
        prepare(scaler, optimizer)
        scaler.step(optimizer)
        return param.tolist()

    with pytest.raises(RuntimeError, match=r"call scaler.unscale_\(optimizer\) before"):
        step(lambda scaler, optimizer: None)
    assert step(torch.amp.GradScaler.unscale_) == pytest.approx([-0.6, -0.8])


def test_the_norms_come_from_one_batched_call(monkeypatch):
    calls = []
    foreach_norm = torch._foreach_norm
    monkeypatch.setattr(
        torch, "_foreach_norm", lambda *a, **k: calls.append(len(a[0])) or foreach_norm(*a, **k)
    )
    clip_grad_norm_per_group_(make_groups(), 0.3)
    assert calls == [3]


@pytest.fixture
def mesh(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh

    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("clip", [clip_grad_norm_per_group_, clip_grad_norm_per_tensor_])
def test_sharded_gradients(mesh, clip):
    from torch.distributed.tensor import Shard, distribute_tensor

    plain, sharded = make_groups(), make_groups()
    for group in sharded:
        for i, param in enumerate(group["params"]):
            placed = nn.Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)]))
            if param.grad is not None:
                placed.grad = distribute_tensor(param.grad, mesh, [Shard(0)])
            group["params"][i] = placed
    assert clip(sharded, 0.3).tolist() == pytest.approx(clip(plain, 0.3).tolist(), rel=1e-6)
    for a, b in zip(tensors(plain)[:3], tensors(sharded)[:3], strict=True):
        torch.testing.assert_close(a.grad, b.grad.full_tensor())


@pytest.mark.parametrize("clip", [clip_grad_norm_per_group_, clip_grad_norm_per_tensor_])
@pytest.mark.parametrize("error_if_nonfinite", [False, True])
def test_sharded_norms_take_one_message_whatever_the_number_of_tensors(
    mesh, clip, error_if_nonfinite, monkeypatch
):
    from torch.distributed.tensor import Shard, distribute_tensor

    params = [nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)])) for _ in range(48)]
    for param in params:
        param.grad = distribute_tensor(torch.full((4,), 3.0), mesh, [Shard(0)])
    messages = []
    send = torch.distributed.all_reduce
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda *a, **k: (messages.append(1), send(*a, **k))[1]
    )
    norms = clip([params[:20], params[20:]], 1.0, error_if_nonfinite=error_if_nonfinite)
    assert len(messages) == 1
    expected = [6 * math.sqrt(20), 6 * math.sqrt(28)] if len(norms) == 2 else [6.0] * 48
    assert norms.tolist() == pytest.approx(expected)


def test_a_second_clip_of_a_kind_is_refused_until_the_first_is_removed():
    """The smaller of two bounds would act, whichever was given last."""
    param = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([param], lr=1.0)
    handle = clip_before_step(optimizer, 0.5)
    with pytest.raises(ValueError, match=r"clipped per group already: remove\(\)"):
        clip_before_step(optimizer, 2.0)
    clip_before_step(optimizer, 3.0, per="tensor")
    handle.remove()
    clip_before_step(optimizer, 2.0)
    (10 * param).sum().backward()
    optimizer.step()
    assert param.item() == pytest.approx(-2.0)


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_a_copy_that_would_not_be_clipped_is_refused(copied, is_wrapped):
    """Torch copies no hooks: the copy stepped with a gradient of 10 where 0.5 was allowed."""
    param = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([param], lr=1.0)
    if is_wrapped:
        optimizer = gqc.OptimizerWrapperSBC(optimizer, 1, 1)
    handle = clip_before_step(optimizer, 0.5)
    with pytest.raises(TypeError, match=r"would not be clipped, .*: remove\(\) the handle"):
        copied(optimizer)
    handle.remove()
    once = copied(optimizer)
    twin = copied(once)
    assert "__getstate__" not in vars(twin)
    for each in (optimizer, twin):
        clip_before_step(each, 0.5)
        param = each.param_groups[0]["params"][0]
        param.grad = torch.full((1,), 10.0)
        before = param.item()
        each.step()
        assert param.item() == pytest.approx(before - 0.5)
