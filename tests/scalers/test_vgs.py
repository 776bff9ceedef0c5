"""The scaler around the estimators: when it acts, what it promises a training loop."""

import contextlib
import copy
import itertools
import math
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vgs_reference import (
    PublishedReference,
    clip_norm,
    feed,
    iid_noise,
    normal,
    percentile,
    variances_of,
)

from gqc import UPGD, ranks
from gqc.noise import ema_kappa
from gqc.scalers import VarianceGradientScaler, moments
from gqc.scalers import vgs as module

RIGHT = ["elementwise", "sketch"]
ALL = [*RIGHT, "spatial", "tensor_spatial", "tensor_mean", "mean_square"]
SHAPES = ((7, 5), (300,), (1,), (2, 3, 4))
METRICS = {
    *(f"vgs/stochastic_var_{x}" for x in ("p10", "p50", "p90", "mean")),
    *("vgs/grad_norm_ema", "vgs/normalized_variance", "vgs/scaling_factor", "vgs/step_count"),
    *("vgs/warmup_active", "vgs/unresolved"),
}
SPATIAL = {"vgs/grad_mean_ema_spatial", "vgs/grad_var_ema_spatial", "vgs/grad_max_ema"}


def make(estimator="sketch", shapes=SHAPES, **options):
    params = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    return params, VarianceGradientScaler(params, estimator=estimator, **options)


def steps(num, shapes=SHAPES, start=0):
    means = [normal(*shape, seed=100 + i) for i, shape in enumerate(shapes)]
    seeds = itertools.count(1000 * start)
    return [[m + normal(*m.shape, seed=next(seeds)) for m in means] for _ in range(num)]


def statistics_of(scaler):
    """All numbers of a scaler, flat."""
    return flatten(scaler.state_dict()["statistics"])


def flatten(state):
    if isinstance(state, dict):
        return [x for key in sorted(state) for x in flatten(state[key])]
    if isinstance(state, list):
        return [x for item in state for x in flatten(item)]
    return [torch.as_tensor(state)]


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a.nan_to_num(nan=-7), b.nan_to_num(nan=-7))
        for a, b in zip(left, right, strict=True)
    )


# --- the factor ----------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("warmup_steps", [0, 10, 50])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.5])
def test_factor_is_the_law_of_the_variance_up_to_the_step_before(estimator, warmup_steps, alpha):
    params, scaler = make(estimator, alpha=alpha, warmup_steps=warmup_steps)
    for t, grads in enumerate(steps(60)):
        variance = scaler.get_normalized_variance()
        expected = min(max(1 / (1 + alpha * min(variance, 50.0)), 0.1), 1.0)
        expected = 1.0 if t < warmup_steps else expected
        assert scaler.get_scaling_factor() == pytest.approx(expected, rel=1e-6)
        [factor] = feed(scaler, params, [grads])
        assert factor == pytest.approx(expected, rel=1e-6)
        for param, grad in zip(params, grads, strict=True):
            torch.testing.assert_close(param.grad, factor * grad)
    assert variance > 0.05


def test_published_factor_over_a_run_is_the_slow_reference():
    """scale, clip, step, with the statistics of what clipping left: to 1e-5 after 40 roundings."""
    params, scaler = make("mean_square", [(40,)], warmup_steps=5, min_scaling_factor=1e-4)
    reference = PublishedReference("mean_square")
    for t in range(40):
        gradient = 1 + normal(40, seed=t)
        params[0].grad = gradient.clone()
        variance = percentile(reference.variances(), 0.9) if t else 0.0
        expected = 1 / (1 + 0.1 * min(variance, 50.0)) if t >= 5 else 1.0
        assert scaler.scale_gradients() == pytest.approx(expected, rel=1e-5)
        clip_norm(params[0], 3.0)
        reference.update([params[0].grad])
        scaler.step()


def test_factor_stays_between_its_bounds():
    params, scaler = make("sketch", [(40,)], warmup_steps=0, alpha=100.0, min_scaling_factor=0.25)
    factors = feed(scaler, params, ([normal(40, seed=t)] for t in range(30)))
    assert min(factors) == 0.25
    assert factors[0] == 1.0


@pytest.mark.parametrize("estimator", ["elementwise", "sketch"])
def test_a_tensor_without_elements_counts_for_nothing(estimator):
    options = {"estimator": estimator, "aggregate": "mean", "warmup_steps": 2, "variance_cap": None}
    params, scaler = make(**options)
    more = [*params, torch.zeros(0, requires_grad=True)]
    other = VarianceGradientScaler(more, **options)
    for grads in steps(6):
        for each in (scaler, other):
            for param, grad in zip(more, [*grads, torch.zeros(0)], strict=True):
                param.grad = grad.clone()
            each.step()
    factor, with_empty = (each.metrics()["vgs/scaling_factor"] for each in (scaler, other))
    assert factor < 1
    assert with_empty == factor


@contextlib.contextmanager
def new_tensors_are(default):
    """A dtype or device that tensors get which are not told theirs."""
    dtype, is_device = torch.get_default_dtype(), default == "meta"
    torch.set_default_dtype(getattr(torch, default, dtype))
    with torch.device(default) if is_device else contextlib.nullcontext():
        yield
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("default", ["bfloat16", "float64", "meta"])
@pytest.mark.parametrize("estimator", [*ALL, "differences"])
def test_defaults_of_new_tensors_change_no_bit(estimator, default):
    shapes = (*SHAPES, (70, 70), (300, 300))
    stream = steps(6, shapes)
    factors = []
    for is_other in (False, True):
        params, scaler = make(estimator, shapes, warmup_steps=2, beta=0.9, alpha=1.0)
        with new_tensors_are(default if is_other else "float32"):
            for number, grads in enumerate(stream):
                for place, (param, grad) in enumerate(zip(params, grads, strict=True)):
                    param.grad = None if (number, place) == (3, 1) else grad.clone()
                factors.append(scaler.scale_gradients())
                scaler.step()
                if number == 2:
                    scaler.load_state_dict(copy.deepcopy(scaler.state_dict()))
    assert factors[:6] == factors[6:]
    assert factors[5] < 1


def test_no_strength_leaves_the_gradient_alone_bit_for_bit():
    params, scaler = make(warmup_steps=0, alpha=0.0)
    for grads in steps(10):
        assert feed(scaler, params, [grads]) == [1.0]
        assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True))


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_settings_may_change_while_training(alpha):
    params, scaler = make(warmup_steps=0)
    feed(scaler, params, steps(20))
    variance = scaler.get_normalized_variance()
    scaler.alpha = alpha
    assert scaler.get_scaling_factor() == pytest.approx(1 / (1 + alpha * min(variance, 50)))
    with pytest.raises(ValueError, match="alpha"):
        scaler.alpha = math.nan
    assert scaler.alpha == alpha
    with pytest.raises(AttributeError):
        scaler.beta = 0.5


# --- what is read, and when ----------------------------------------------------------------------


def burst_run(estimator):
    """Noise of ratio 1 with a burst of 20 times the gradient now and then, clipped to its norm."""
    params, scaler = make(estimator, [(640,)], alpha=0.0, warmup_steps=0, beta=0.95)
    stream = iid_noise(640, 1.0)
    for t in range(200):
        params[0].grad = stream(t) * (20 if t % 10 == 0 else 1)
        scaler.scale_gradients()
        clip_norm(params[0], 36.0)
        scaler.step()
    return scaler.get_normalized_variance()


@pytest.mark.parametrize("estimator", RIGHT)
def test_clipping_does_not_hide_bursts(estimator):
    clipped_before = burst_run_clipped_first(estimator)
    assert burst_run(estimator) > 3 * clipped_before


def burst_run_clipped_first(estimator):
    params, scaler = make(estimator, [(640,)], alpha=0.0, warmup_steps=0, beta=0.95)
    stream = iid_noise(640, 1.0)
    for t in range(200):
        params[0].grad = stream(t) * (20 if t % 10 == 0 else 1)
        clip_norm(params[0], 36.0)
        scaler.scale_gradients()
        scaler.step()
    return scaler.get_normalized_variance()


def test_clipping_hid_bursts_as_published():
    assert burst_run("mean_square") == pytest.approx(burst_run_clipped_first("mean_square"))


@pytest.mark.parametrize("estimator", RIGHT)
def test_step_alone_reads_the_gradient_it_finds(estimator):
    params, scaler = make(estimator, alpha=0.0)
    others, other = make(estimator, alpha=0.0)
    for grads in steps(5):
        feed(scaler, params, [grads])
        for param, grad in zip(others, grads, strict=True):
            param.grad = grad.clone()
        other.step()
    assert same(statistics_of(scaler), statistics_of(other))
    assert scaler.step_count == other.step_count == 5


@pytest.mark.parametrize("estimator", ALL)
def test_a_gradient_is_read_once_a_step(estimator):
    params, scaler = make(estimator, alpha=0.0)
    others, other = make(estimator, alpha=0.0)
    for grads in steps(5):
        feed(scaler, params, [grads])
        for param, grad in zip(others, grads, strict=True):
            param.grad = grad.clone()
        other.update_statistics()
        other.scale_gradients()
        other.step()
    assert same(statistics_of(scaler), statistics_of(other))


def backward(param, grad=1.0, zero=None):
    """A backward, and ``zero_grad`` in front of it: to None, in place, or not at all."""
    if zero == "none":
        param.grad = None
    elif zero == "in place" and param.grad is not None:
        param.grad.zero_()
    (grad * param).sum().backward()


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize(
    "between", ["nothing", "clipping", "another backward", "zeros in place", "another scaler"]
)
@pytest.mark.parametrize("warmup_steps", [0, 100])
def test_a_gradient_is_scaled_once_a_step(estimator, between, warmup_steps):
    (param,), scaler = make(estimator, [(40,)], warmup_steps=warmup_steps)
    for _ in range(3):
        backward(param, zero="none")
        scaler.scale_gradients()
        scaler.step()
    backward(param, zero="none")
    scaler.scale_gradients()
    if between == "clipping":
        torch.nn.utils.clip_grad_norm_([param], 1e-3)
    elif between == "another scaler":
        VarianceGradientScaler([param]).scale_gradients()
    elif between != "nothing":
        backward(param, zero="in place" if between == "zeros in place" else None)
    before = param.grad.clone()
    with pytest.raises(RuntimeError, match=r"again before step.*once per optimizer step"):
        scaler.scale_gradients()
    assert torch.equal(param.grad, before)
    scaler.step()
    scaler.scale_gradients()


@pytest.mark.parametrize("bad", [2.0, math.nan])
def test_a_step_may_be_left_out(bad):
    """As where a loop throws a batch away by its norm, before ``step()`` of the scaler."""
    (param,), scaler = make(shapes=[(40,)], warmup_steps=0, alpha=1.0)
    for t in range(12):
        backward(param, bad if t in (5, 6) else 1.0 + 0.1 * (t % 2), "none")
        before = param.grad.clone()
        factor = scaler.scale_gradients()
        torch.testing.assert_close(param.grad, factor * before, equal_nan=True)
        if t not in (5, 6):
            scaler.step()
    assert scaler.step_count == 10
    assert factor < 1
    scaler.enabled = False
    scaler.step()
    scaler.enabled = True
    backward(param, 1.0, "in place")
    assert scaler.scale_gradients() < 1


def test_a_scaler_that_is_never_stepped_says_so():
    (param,), scaler = make(shapes=[(40,)])
    backward(param)
    scaler.scale_gradients()
    backward(param, zero="none")
    with pytest.warns(UserWarning, match="without it the warmup never ends"):
        scaler.scale_gradients()


@pytest.mark.parametrize("estimator", ALL)
def test_scaling_before_backward_which_scales_nothing_is_refused(estimator):
    (param,), scaler = make(estimator, [(40,)], warmup_steps=0)
    scaler.scale_gradients()
    scaler.step()  # a step without any gradient is none
    scaler.scale_gradients()
    backward(param)
    with pytest.raises(RuntimeError, match=r"scale_gradients\(\) before backward\(\)"):
        scaler.step()
    scaler.scale_gradients()  # in the right order
    scaler.step()


@pytest.mark.parametrize("estimator", ALL)
def test_gradients_that_are_gone_before_they_are_read(estimator):
    (param,), scaler = make(estimator, [(40,)], warmup_steps=0)
    backward(param)
    scaler.scale_gradients()
    param.grad = None
    if estimator in RIGHT:
        scaler.step()
        assert scaler._estimator.count.tolist() == [1]
    else:
        with pytest.raises(RuntimeError, match=r"call the scaler's step.* and zero_grad"):
            scaler.step()


@pytest.mark.parametrize("estimator", ALL)
def test_a_file_that_is_loaded_in_mid_step_goes_on_as_in_a_new_scaler(estimator):
    params, scaler = make(estimator, warmup_steps=2)
    feed(scaler, params, steps(5))
    state, stream = scaler.state_dict(), steps(4, start=1)
    for param, grad in zip(params, steps(1, start=2)[0], strict=True):
        param.grad = grad
    scaler.scale_gradients()
    scaler.load_state_dict(state)
    others, other = make(estimator)
    other.load_state_dict(state)
    assert feed(scaler, params, stream) == feed(other, others, stream)
    assert same(statistics_of(scaler), statistics_of(other))


@pytest.mark.parametrize("estimator", [*RIGHT, "differences"])
@pytest.mark.parametrize("numel", [1, 39, 41])
def test_a_parameter_that_changes_its_size_is_refused(estimator, numel):
    """A sketch would take the elements of one tensor for those of the next."""
    params, scaler = make(estimator, [(40,), (5,)])
    feed(scaler, params, steps(2, [(40,), (5,)]))
    params[0].data, params[0].grad = torch.zeros(numel), None
    with pytest.raises(ValueError, match=f"gradient 0 has {numel} elements, and 40 .*update_param"):
        feed(scaler, params, steps(1, [(numel,), (5,)]))
    scaler.reset_statistics()
    feed(scaler, params, steps(1, [(numel,), (5,)]))


class CountsSyncs(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading elements, copying, and their kin."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def syncs(monkeypatch):
    """Host syncs so far: reads by torch's dispatcher, and tolist, which on a CPU goes round it."""
    counts = CountsSyncs()
    tolist = torch.Tensor.tolist

    def counted(tensor):
        counts.count += 1
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    monkeypatch.setattr(moments, "is_on_host", lambda _: False)  # as on a GPU
    with counts:
        yield counts


@pytest.mark.parametrize("estimator", ["sketch", "elementwise", "differences"])
def test_what_the_host_may_look_at_changes_no_bit(estimator, monkeypatch):
    """A CPU looks whether a gradient was read; a GPU, which would wait for that, calculates on."""
    states = []
    for is_cpu in (True, False):
        monkeypatch.setattr(moments, "is_on_host", lambda _, is_cpu=is_cpu: is_cpu)
        params, scaler = make(estimator, warmup_steps=2)
        factors = []
        for t, grads in enumerate(steps(300)):  # more than one block of weights
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad * math.nan if t in (1, 7) else grad
            factors.append(scaler.scale_gradients())
            scaler.step()
        assert scaler.num_skipped == 2
        states.append((factors, scaler.state_dict()["statistics"]))
    (factors, cpu), (other_factors, other) = states
    assert factors == other_factors
    for key in ("count", "spread", "mean_sq", "means"):
        for here, there in zip(cpu[key], other[key], strict=True):
            assert torch.equal(here, there)


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("granularity", ["global", "tensor"])
def test_one_host_sync_a_step_and_none_during_warmup(estimator, granularity, syncs):
    params, scaler = make(estimator, warmup_steps=3, granularity=granularity)
    for t, grads in enumerate(steps(8)):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        before = syncs.count
        scaler.scale_gradients()
        scaler.step()
        assert syncs.count - before == (0 if t < 3 else 1)
    params[0].grad = params[0].grad * math.nan
    before = syncs.count
    scaler.scale_gradients()
    scaler.step()
    assert syncs.count - before == 1


def test_a_logger_costs_no_second_sync(syncs):
    logged = []
    params, scaler = make(warmup_steps=0, logger=logged.append)
    for grads in steps(5):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        before = syncs.count
        scaler.scale_gradients()
        scaler.step()
        assert syncs.count - before == 1
    assert len(logged) == 5


def test_numbers_that_another_thread_reads_during_an_update_are_not_kept(monkeypatch):
    """A view that reads at the wrong moment must not change a record, nor the next factor."""
    params, scaler = make(alpha=1.0, warmup_steps=0)
    others, alone = make(alpha=1.0, warmup_steps=0)
    first, second, third = steps(3)
    feed(alone, others, [first, second])
    expected = alone.metrics()

    feed(scaler, params, [first])
    real, estimator = module.numbers, scaler._estimator
    advanced = estimator._advanced

    def slowly(*args):  # the training thread takes a step before these numbers arrive
        monkeypatch.undo()
        numbers = real(*args)
        monkeypatch.setattr(estimator, "_advanced", during)
        feed(scaler, params, [second])
        return numbers

    def during(*args):  # and here it is within an update
        monkeypatch.undo()
        scaler.metrics()
        return advanced(*args)

    monkeypatch.setattr(module, "numbers", slowly)
    assert scaler.metrics()["vgs/grad_norm_ema"] != expected["vgs/grad_norm_ema"]
    assert scaler.metrics() == expected
    assert feed(scaler, params, [third]) == feed(alone, others, [third])


def test_the_sync_counter_counts(syncs):
    x = torch.ones(3)
    for read in (lambda: x[0].item(), lambda: bool(x[0] > 0), x.tolist, lambda: float(x[1])):
        before = syncs.count
        read()
        assert syncs.count == before + 1


# --- gradients that are not there, or not numbers ------------------------------------------------


@pytest.mark.parametrize("estimator", RIGHT)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", [0, 5])
def test_a_non_finite_gradient_is_skipped_and_leaves_no_trace(estimator, bad, when):
    for granularity in ("global", "element") if estimator == "elementwise" else ("global",):
        params, scaler = make(estimator, granularity=granularity)
        others, other = make(estimator, granularity=granularity)
        stream = steps(10)
        feed(other, others, stream)
        poisoned = [g.clone() for g in stream[0]]
        poisoned[1][17] = bad
        feed(scaler, params, [*stream[:when], poisoned, *stream[when:]])
        assert scaler.num_skipped == 1
        assert other.num_skipped == 0
        state, clean = scaler.state_dict(), other.state_dict()
        assert state["step_count"] == clean["step_count"] + 1
        state["statistics"].pop("num_skipped")
        clean["statistics"].pop("num_skipped")
        assert same(flatten(state["statistics"]), flatten(clean["statistics"]))


def test_a_gradient_whose_square_overflows_is_skipped():
    params, scaler = make("elementwise", [(40,)])
    feed(scaler, params, [[torch.ones(40)], [torch.full((40,), 1e30)], [torch.ones(40)]])
    assert scaler.num_skipped == 1
    assert scaler.get_normalized_variance() == 0


def test_a_nan_lost_its_tensor_for_ever_as_published():
    params, scaler = make("tensor_mean")
    poisoned = [g.clone() for g in steps(1)[0]]
    poisoned[1][17] = math.nan
    feed(scaler, params, [*steps(5), poisoned, *steps(50, start=1)])
    ratios = variances_of(scaler)
    assert ratios[1] == 0
    assert (ratios[[0, 3]] > 0).all()
    assert math.isfinite(scaler.get_normalized_variance())


@pytest.mark.parametrize("estimator", ALL)
def test_no_gradients_at_all(estimator):
    params, scaler = make(estimator, warmup_steps=0)
    assert feed(scaler, params, [[None] * 4] * 3) == [1.0] * 3
    assert scaler.get_normalized_variance() == 0
    feed(scaler, params, steps(3))
    before = statistics_of(scaler)
    feed(scaler, params, [[None] * 4])
    assert same(before, statistics_of(scaler))


@pytest.mark.parametrize("estimator", RIGHT)
def test_a_late_parameter_starts_its_own_count(estimator):
    params, scaler = make(estimator)
    others, other = make(estimator)
    stream = steps(12)
    feed(scaler, params, [[*grads[:1], None, *grads[2:]] for grads in stream[:5]])
    feed(scaler, params, stream[5:])
    feed(other, others, stream[5:])
    late, fresh = variances_of(scaler), variances_of(other)
    assert late[1] == fresh[1]
    assert late[0] != fresh[0]


@pytest.mark.parametrize("estimator", [*RIGHT, "differences"])
def test_a_frozen_tensor_does_not_count_until_it_is_thawed(estimator):
    """A tensor of nothing but noise next to a quiet one, whose V alone counts when it is frozen."""
    noisy, quiet = (torch.zeros(40, requires_grad=True) for _ in range(2))
    scaler = VarianceGradientScaler([noisy, quiet], estimator=estimator, aggregate="max")
    twin = torch.zeros(40, requires_grad=True)
    alone = VarianceGradientScaler([twin], estimator=estimator)
    draws = [[normal(40, seed=t), 1 + 0.1 * normal(40, seed=100 + t)] for t in range(30)]
    feed(scaler, [noisy, quiet], draws[:20])
    feed(alone, [twin], [[mild] for _, mild in draws[:20]])
    assert scaler.get_normalized_variance() == 50
    noisy.requires_grad_(False)
    feed(scaler, [noisy, quiet], [[None, mild] for _, mild in draws[20:]])
    feed(alone, [twin], [[mild] for _, mild in draws[20:]])
    assert scaler.get_normalized_variance() == pytest.approx(alone.get_normalized_variance())
    assert scaler.get_normalized_variance() < 0.1
    resumed = VarianceGradientScaler([noisy, quiet], estimator=estimator, aggregate="max")
    resumed.load_state_dict(scaler.state_dict())
    assert resumed.metrics() == scaler.metrics()
    noisy.requires_grad_(True)
    feed(scaler, [noisy, quiet], [[strong, None] for strong, _ in draws[20:]])
    whole = VarianceGradientScaler([twin], estimator=estimator)
    feed(whole, [twin], [[strong] for strong, _ in draws])
    thawed = variances_of(scaler)[0]
    assert thawed == pytest.approx(variances_of(whole)[0])
    assert scaler.get_normalized_variance() == 50


def test_tensors_without_a_gradient_so_far_do_not_count():
    """Frozen layers would pull the percentile down to 0."""
    params, scaler = make(warmup_steps=0)
    feed(scaler, params, [[None, None, None, grads[3]] for grads in steps(20)])
    ratios, counted, *_ = scaler._estimator.read(50.0)
    assert counted == [False, False, False, True]
    assert scaler.get_normalized_variance() == pytest.approx(ratios[3])


def test_a_sparse_gradient_is_refused_by_name():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    scaler = VarianceGradientScaler(embedding.named_parameters())
    with pytest.raises(TypeError, match=r"weight has a .*sparse.* gradient"):
        scaler.scale_gradients()


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gradients_keep_their_type(estimator, dtype):
    params = [torch.zeros(40, dtype=dtype, requires_grad=True)]
    scaler = VarianceGradientScaler(params, estimator=estimator, warmup_steps=0, alpha=1.0)
    factors = feed(scaler, params, ([1 + normal(40, seed=t)] for t in range(20)))
    assert params[0].grad.dtype == dtype
    assert 0.1 <= factors[-1] < 1
    assert params[0].grad.isfinite().all()


@pytest.mark.parametrize("estimator", RIGHT)
def test_strided_gradients(estimator):
    params, scaler = make(estimator, [(30, 20)], warmup_steps=0)
    others, other = make(estimator, [(30, 20)], warmup_steps=0)
    for t in range(5):
        gradient = 1 + normal(30, 20, seed=t)
        params[0].grad = gradient.t().contiguous().t()
        others[0].grad = gradient.clone()
        assert scaler.scale_gradients() == pytest.approx(other.scale_gradients(), rel=1e-5)
        torch.testing.assert_close(params[0].grad, others[0].grad)
        scaler.step(), other.step()


# --- off, or other parameters --------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ALL)
def test_disabled_is_a_no_op(estimator):
    params, scaler = make(estimator, enabled=False, warmup_steps=0, logger=print)
    for grads in steps(5):
        assert feed(scaler, params, [grads]) == [1.0]
        assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True))
    assert scaler.step_count == 0
    assert scaler._estimator is None
    assert scaler.get_scaling_factor() == 1.0
    scaler.enabled = True
    feed(scaler, params, steps(5))
    assert scaler.step_count == 5


def test_disabled_never_looks_at_a_gradient(monkeypatch):
    _, scaler = make(enabled=False)
    monkeypatch.setattr(scaler._parameters, "gradients", None)
    assert scaler.scale_gradients() == 1.0
    scaler.step()


@pytest.mark.parametrize("estimator", ALL)
def test_updated_parameters_keep_the_statistics_of_those_that_stay(estimator):
    params, scaler = make(estimator)
    feed(scaler, params, steps(20))
    before = variances_of(scaler)
    new = torch.zeros(50, requires_grad=True)
    scaler.update_parameters([params[3], new, params[0]])
    after = variances_of(scaler)
    assert after[0] == before[3]
    assert after[2] == before[0]
    assert scaler.step_count == 20
    feed(scaler, [params[3], new, params[0]], [[normal(24, seed=1), torch.ones(50), None]])
    if estimator in RIGHT:
        assert after[1] == 0
        assert scaler._estimator.count.tolist() == [21, 1, 20]


def test_tied_parameters_are_scaled_once():
    param = torch.ones(40, requires_grad=True)
    scaler = VarianceGradientScaler([param, param], warmup_steps=0, alpha=1.0)
    for t in range(5):
        param.grad = 1 + normal(40, seed=t)
        before = param.grad.clone()
        factor = scaler.scale_gradients()
        torch.testing.assert_close(param.grad, factor * before)
        scaler.step()
    assert factor < 1


def test_reset_starts_afresh():
    params, scaler = make(warmup_steps=3)
    others, other = make(warmup_steps=3)
    feed(scaler, params, steps(10))
    scaler.reset_statistics()
    assert scaler.step_count == 0
    stream = steps(10, start=1)
    assert feed(scaler, params, stream) == feed(other, others, stream)


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"percentile": 0.5}, lambda v, n: percentile(v, 0.5)),
        ({"percentile": 0.95}, lambda v, n: percentile(v, 0.95)),
        ({"percentile": 0.0}, lambda v, n: min(v)),
        ({"aggregate": "mean"}, lambda v, n: sum(v) / len(v)),
        ({"aggregate": "max"}, lambda v, n: max(v)),
        (
            {"aggregate": "numel_weighted"},
            lambda v, n: sum(a * b for a, b in zip(v, n, strict=True)) / sum(n),
        ),
    ],
)
def test_aggregation_over_tensors(options, reference):
    params, scaler = make(**options)
    feed(scaler, params, steps(20))
    ratios = variances_of(scaler, 50.0).tolist()
    assert len(set(ratios)) == 4
    expected = reference(ratios, [p.numel() for p in params])
    assert scaler.get_normalized_variance() == pytest.approx(expected, rel=1e-5)


def law(variance):
    return (1 / (1 + 0.1 * variance.clamp(max=50))).clamp(0.1, 1)


@pytest.mark.parametrize("estimator", ALL)
def test_a_factor_for_each_tensor(estimator):
    params, scaler = make(estimator, warmup_steps=0, granularity="tensor")
    feed(scaler, params, steps(20))
    expected = law(variances_of(scaler, 50.0))
    grads = steps(1, start=9)[0]
    [factor] = feed(scaler, params, [grads])
    assert factor == pytest.approx(expected.mean().item(), rel=1e-5)
    for param, grad, own in zip(params, grads, expected, strict=True):
        torch.testing.assert_close(param.grad, own * grad)


def test_a_factor_for_each_group():
    params = [torch.zeros(shape, requires_grad=True) for shape in SHAPES]
    optimizer = torch.optim.SGD([{"params": params[:3]}, {"params": params[3:], "lr": 0.1}], lr=1)
    options = {"warmup_steps": 0, "granularity": "group", "aggregate": "mean"}
    scaler = VarianceGradientScaler(optimizer.param_groups, **options)
    feed(scaler, params, steps(20))
    ratios = variances_of(scaler, 50.0)
    expected = law(torch.stack([ratios[:3].mean()] * 3 + [ratios[3]]))
    grads = steps(1, start=9)[0]
    feed(scaler, params, [grads])
    for param, grad, own in zip(params, grads, expected, strict=True):
        torch.testing.assert_close(param.grad, own * grad)


def test_a_factor_for_each_element():
    """The noisy half of a tensor is scaled, the other is not; each element as a tensor alone."""
    options = {"warmup_steps": 0, "alpha": 1.0}
    params, scaler = make("elementwise", [(4, 5)], granularity="element", **options)
    deviation = torch.linspace(0, 3, 20).view(4, 5)
    stream = [[1 + deviation * normal(4, 5, seed=t)] for t in range(30)]
    feed(scaler, params, stream)
    singles, single = make("elementwise", [(1,)] * 20, granularity="tensor", **options)
    feed(single, singles, [g[0].view(-1).split(1) for g in stream])
    torch.testing.assert_close(
        params[0].grad.flatten(), torch.cat([p.grad for p in singles]), rtol=1e-4, atol=1e-6
    )
    assert params[0].grad[0, 0] == 1.0
    assert abs(params[0].grad[3, 4]) < abs(stream[-1][0][3, 4])
    assert scaler.get_scaling_factor() == pytest.approx(single.get_scaling_factor(), rel=1e-4)


def test_ratios_of_elements_are_bounded_and_never_nan():
    params, scaler = make("elementwise", [(6,)], granularity="element", warmup_steps=0)
    feed(scaler, params, [[torch.ones(6)]] * 100)
    estimator = scaler._estimator
    kappa = ema_kappa(torch.tensor(100.0), 0.99)
    spread = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1e30])
    signal = torch.tensor([2.0, 0.0, -1e-3, 0.0, 1.0, 1e-30])
    estimator.spreads[0].copy_(spread * (1 - kappa))
    estimator.means[0].copy_((signal + kappa * spread).sqrt())
    assert estimator.element_ratios(0, 50.0).tolist() == pytest.approx([0.5, 50, 50, 0, 0, 50])
    assert estimator.element_ratios(0, None).max() == pytest.approx(1 / kappa)
    estimator.spreads[0].fill_(math.inf)
    assert estimator.element_ratios(0, 50.0).tolist() == [50.0] * 6


def test_spatial_statistics_are_tracked_on_request():
    params, scaler = make(track_spatial=True, beta=0.9)
    stream = steps(10)
    feed(scaler, params, stream)
    sizes = [torch.cat([g.flatten() for g in grads]).abs().double() for grads in stream]
    numbers = torch.stack([torch.stack([s.mean(), s.var(), s.norm(), s.max()]) for s in sizes])
    w = 0.9 ** torch.arange(9, -1, -1).double()
    mean, var, norm, largest = ((w[:, None] * numbers).sum(0) / w.sum()).tolist()
    metrics = scaler.metrics()
    assert metrics["vgs/grad_mean_ema_spatial"] == pytest.approx(mean, rel=1e-5)
    assert metrics["vgs/grad_var_ema_spatial"] == pytest.approx(var, rel=1e-5)
    assert metrics["vgs/grad_norm_ema"] == pytest.approx(norm, rel=1e-4)
    assert metrics["vgs/grad_max_ema"] == pytest.approx(largest, rel=1e-5)


def test_norm_of_the_sketch_is_the_norm_give_or_take():
    """64 projections, one for each element of the small tensors: at most 18%/2 on the norm."""
    params, scaler = make(beta=0.9)
    others, other = make("elementwise", beta=0.9)
    stream = steps(50)
    feed(scaler, params, stream)
    feed(other, others, stream)
    exact = sum(torch.cat([g.flatten() for g in grads]).norm() for grads in stream[-10:]) / 10
    assert other.metrics()["vgs/grad_norm_ema"] == pytest.approx(exact.item(), rel=0.05)
    assert scaler.metrics()["vgs/grad_norm_ema"] == pytest.approx(exact.item(), rel=0.3)


@pytest.mark.parametrize("estimator", ["elementwise", "tensor_mean"])
def test_the_norm_of_a_large_tensor_keeps_its_digits(estimator):
    """One float32 sum of so many equal squares is off by 3e-3."""
    numel = 2**22
    (param,), scaler = make(estimator, [(numel,)])
    param.grad = torch.full((numel,), 1e-3)
    scaler.step()
    norm = 1e-3 * math.sqrt(numel)
    assert scaler.compute_gradient_statistics()["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert scaler.metrics()["vgs/grad_norm_ema"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("estimator", ALL)
def test_metrics_have_their_published_names(estimator):
    params, scaler = make(estimator, warmup_steps=2)
    always = METRICS | (set() if estimator in RIGHT else SPATIAL)
    assert scaler.metrics().keys() == always
    feed(scaler, params, steps(5))
    metrics = scaler.metrics()
    assert metrics.keys() == always
    assert all(isinstance(v, (int, float)) and math.isfinite(v) for v in metrics.values())
    ratios = variances_of(scaler, 50.0).tolist()
    for name, level in [("p10", 0.1), ("p50", 0.5), ("p90", 0.9)]:
        value = metrics[f"vgs/stochastic_var_{name}"]
        assert value == pytest.approx(percentile(ratios, level), rel=1e-5)
    assert metrics["vgs/stochastic_var_mean"] == pytest.approx(sum(ratios) / 4, rel=1e-5)
    assert metrics["vgs/step_count"] == 5
    assert metrics["vgs/warmup_active"] == 0


def test_named_parameters_have_a_metric_each():
    model = torch.nn.Linear(30, 20)
    scaler = VarianceGradientScaler(model.named_parameters(), track_spatial=True)
    shapes = [p.shape for p in model.parameters()]
    feed(scaler, list(model.parameters()), steps(5, shapes))
    metrics = scaler.metrics()
    single = {"vgs/normalized_variance/weight", "vgs/normalized_variance/bias"}
    assert metrics.keys() == METRICS | SPATIAL | single
    ratios = variances_of(scaler, 50.0).tolist()
    assert [metrics[f"vgs/normalized_variance/{n}"] for n in ("weight", "bias")] == ratios


def test_loggers():
    class Recorder:
        def __init__(self):
            self.records = []

        def record(self, key, value):
            self.records.append((key, value))

    recorder, dicts = Recorder(), []
    for logger in (recorder, dicts.append):
        params, scaler = make(logger=logger)
        feed(scaler, params, steps(3))
    assert [dict(recorder.records[i : i + 10]) for i in (0, 10, 20)] == dicts
    assert dicts[2] == scaler.metrics()
    assert dicts[2]["vgs/step_count"] == 3


def test_gradient_statistics():
    params, scaler = make()
    zero = {"grad_norm": 0.0, "grad_mean": 0.0, "grad_var": 0.0, "grad_max": 0.0, "num_params": 0}
    assert scaler.compute_gradient_statistics() == zero
    params[2].grad = torch.tensor([-3.0])
    one = {"grad_norm": 3.0, "grad_mean": 3.0, "grad_var": 0.0, "grad_max": 3.0, "num_params": 1}
    assert scaler.compute_gradient_statistics() == one
    params[1].grad = normal(300, seed=1)
    everything = torch.cat([torch.tensor([3.0]), params[1].grad.abs()])
    got = scaler.compute_gradient_statistics()
    expected = [everything.norm(), everything.mean(), everything.var(), everything.max()]
    assert list(got.values()) == pytest.approx([*(x.item() for x in expected), 301])


def test_from_config():
    params = [torch.zeros(3, requires_grad=True)]
    config = {"variance_gradient_scaling": False, "vgs_beta": 0.9, "vgs_alpha": 0.2, "lr": 1}
    scaler = VarianceGradientScaler.from_config({**config, "vgs_warmup_steps": 7}, params)
    assert (scaler.enabled, scaler.beta, scaler.alpha, scaler.warmup_steps) == (False, 0.9, 0.2, 7)
    scaler = VarianceGradientScaler.from_config({}, params, estimator="elementwise")
    assert (scaler.enabled, scaler.beta, scaler.estimator) == (True, 0.99, "elementwise")
    with pytest.raises(ValueError, match="did you mean 'vgs_alpha'"):
        VarianceGradientScaler.from_config({"vgs_alhpa": 0.1}, params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta=0.0"),
        ({"beta": 1.0}, "beta=1.0"),
        ({"beta": math.nan}, "beta=nan"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"alpha": math.nan}, "alpha=nan"),
        ({"alpha": math.inf}, "alpha=inf"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"eps": math.nan}, "eps=nan"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"warmup_steps": 1.5}, "warmup_steps=1.5"),
        ({"min_scaling_factor": -0.1}, "min_scaling_factor=-0.1"),
        ({"min_scaling_factor": 1.1}, "min_scaling_factor=1.1"),
        ({"variance_cap": 0.0}, "variance_cap=0.0"),
        ({"variance_cap": math.nan}, "variance_cap=nan"),
        ({"percentile": 1.1}, "percentile=1.1"),
        ({"percentile": -0.1}, "percentile=-0.1"),
        ({"percentile": math.nan}, "percentile=nan"),
        ({"sketch_size": 0}, "sketch_size=0"),
        ({"sketch_seed": -1}, "sketch_seed=-1"),
        ({"enabled": "yes"}, "enabled='yes'"),
        ({"estimator": "elementwize"}, "did you mean 'elementwise'"),
        ({"aggregate": "median"}, "aggregate='median'"),
        ({"granularity": "layer"}, "granularity='layer'"),
        ({"granularity": "element"}, "estimator='elementwise'"),
        ({"granularity": "group"}, "param_groups"),
    ],
)
def test_bad_arguments_are_refused_with_their_value(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_scaler_of_one_rank_alone_takes_no_number_that_ranks_compare_by(tmp_path):
    """Wrappers number themselves for their comparisons, alike on all ranks."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
        before = dict(ranks._made)
        scaler = VarianceGradientScaler(model.parameters())
        model(torch.ones(1, 2)).sum().backward()
        scaler.scale_gradients()
        UPGD(model.parameters())
        assert dict(ranks._made) == before
    finally:
        torch.distributed.destroy_process_group()


def test_bad_parameters_are_refused():
    param = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match="no parameters"):
        VarianceGradientScaler([])
    with pytest.raises(TypeError, match=r"is one tensor, .*: \[it\]"):
        VarianceGradientScaler(param)
    with pytest.raises(TypeError, match="hold a str"):
        VarianceGradientScaler(["weight"])
    with pytest.raises(ValueError, match="name all or none"):
        VarianceGradientScaler([("a", param), torch.zeros(3, requires_grad=True)])
    nets = [torch.nn.Linear(2, 2) for _ in range(2)]
    with pytest.raises(ValueError, match="two parameters have one name"):
        VarianceGradientScaler([pair for net in nets for pair in net.named_parameters()])
    scaler = VarianceGradientScaler([param])
    with pytest.raises(ValueError, match="no parameters"):
        scaler.update_parameters(iter(()))
    assert scaler._parameters.tensors[0] is param


# --- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_alike(estimator, twin):
    params, scaler = make(estimator, warmup_steps=3)
    feed(scaler, params, steps(10))
    others, other = twin((params, scaler))
    assert other._parameters.tensors[0] is others[0]
    stream = steps(10, start=1)
    assert feed(other, others, stream) == feed(scaler, params, stream)
    assert same(statistics_of(scaler), statistics_of(other))


def test_nothing_touches_the_global_random_stream():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    params, scaler = make(sketch_seed=987)
    feed(scaler, params, [[torch.ones(shape) for shape in SHAPES]] * 3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("moves", [False, True])
def test_a_second_scaling_is_seen_whichever_gradient_comes_first(moves):
    """A first loss may reach later parameters alone, and the list of parameters may be renewed."""
    params, scaler = make(shapes=((3,), (2,)), warmup_steps=0)
    first, second = params
    second.grad = torch.ones(2)
    scaler.scale_gradients()
    first.grad = torch.ones(3)
    if moves:
        scaler.update_parameters(params)
    with pytest.raises(RuntimeError, match=r"again before step"):
        scaler.scale_gradients()
    scaler.step()
    first.grad = second.grad = None
    scaler.scale_gradients()
