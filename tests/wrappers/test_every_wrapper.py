"""The suite that every wrapper of the family has to pass; each is one row of ``cases.CASES``."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from functools import cache

import pytest
import torch
from cases import CASES, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    SHAPES,
    backward,
    global_norm,
    mean_of,
    metric,
    parameters,
    quadratic,
    rosenbrock,
    stream,
    train_slowly,
)
from torch import Tensor

import gqc

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
PLAIN = {name: case for name, case in CASES.items() if case.plain}
every_plain_case = pytest.mark.parametrize("case", PLAIN.values(), ids=PLAIN)
both_windows = pytest.mark.parametrize("accumulate", ["grad", "buffer"])


def adamw(params):
    return torch.optim.AdamW(params, lr=0.05)


def options(case: Case, accumulate: str) -> dict[str, str]:
    """``accumulate`` where the wrapper leaves the choice."""
    probe = case.make(adamw(parameters()))
    return {} if probe.needs_draw_norm else {"accumulate": accumulate}


def feed(wrapper, params, draws, start: int = 0) -> list[bool]:
    stepped = []
    for i, grads in enumerate(draws, start):
        backward(params, grads)
        stepped.append(wrapper.step(metric=metric(i)))
    return stepped


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def reload(state):
    """Through a file, as a resumed run does."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_plain_case
def test_identity_limit_is_bitwise_the_bare_optimizer(case):
    ours, bare = parameters(), parameters()
    wrapper, optimizer = case.plain(adamw(ours)), adamw(bare)
    for grads in stream(20):
        for _ in range(2):  # equal draws, whose mean is exact
            backward(ours, grads)
            if wrapper.step(metric=1.0):
                break
        else:
            pytest.fail("no step in two equal draws")
        backward(bare, grads)
        optimizer.step()
        optimizer.zero_grad()
    assert equal(ours, bare)


@every_case
@both_windows
def test_follows_the_slow_reference(case, accumulate):
    draws = stream(60)
    ours, theirs = parameters(), parameters(torch.float64)
    wrapper, optimizer = case.make(adamw(ours), **options(case, accumulate)), adamw(theirs)
    expected = train_slowly(case, optimizer, theirs, draws)
    assert feed(wrapper, ours, draws) == expected
    assert sum(expected) > 5
    # AdamW moves by at most about lr a step, each rounded to float32: 60 steps of 0.05 * 2^-24
    # on parameters of order 1 stay far below 1e-5.
    for param, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param.double(), reference, rtol=0, atol=1e-5)


@every_plain_case
@pytest.mark.parametrize(
    ("problem", "start", "lr", "steps"),
    [
        pytest.param(quadratic, (3.0, -2.0, 1.0), 0.1, 400, id="quadratic"),
        pytest.param(rosenbrock, (-0.5, 0.5), 0.02, 3000, id="rosenbrock", marks=pytest.mark.slow),
    ],
)
def test_reaches_the_minimum_without_noise(case, problem, start, lr, steps):
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    wrapper = case.plain(torch.optim.Adam([x], lr=lr))
    for _ in range(steps):
        stepped = False
        while not stepped:
            loss = problem(x)
            loss.backward()
            stepped = wrapper.step(metric=float(loss.detach()))
    assert problem(x) < 1e-3


@cache  # every cut is compared with the same run
def uncut_run(make, **chosen):
    params = parameters()
    wrapper = make(adamw(params), **chosen)
    return params, feed(wrapper, params, stream(40)), wrapper.statistics()


@every_case
@both_windows
@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 39))
def test_a_cut_and_resumed_run_is_bitwise_the_uncut(case, accumulate, cut):
    draws = stream(40)
    uncut, decisions, statistics = uncut_run(case.make, **options(case, accumulate))
    before = parameters()
    first = case.make(adamw(before), **options(case, accumulate))
    feed(first, before, draws[:cut])
    saved = reload(first.state_dict())
    after = [p.detach().clone().requires_grad_() for p in before]
    second = case.make(adamw(after), **options(case, accumulate))
    second.load_state_dict(saved)
    assert feed(second, after, draws[cut:], start=cut) == decisions[cut:]
    assert equal(after, uncut)
    assert second.statistics() == statistics


@every_case
@both_windows
@pytest.mark.parametrize("cut", [13, 14, 18])
def test_flush_after_a_resume_is_the_flush_without_it(case, accumulate, cut):
    draws = stream(40)
    runs = []
    for is_resumed in (False, True):
        params = parameters()
        wrapper = case.make(adamw(params), min_draws=2, **options(case, accumulate))
        feed(wrapper, params, draws[:cut])
        if is_resumed:
            saved = reload(wrapper.state_dict())
            params = [p.detach().clone().requires_grad_() for p in params]
            wrapper = case.make(adamw(params), min_draws=2, **options(case, accumulate))
            wrapper.load_state_dict(saved)
        flushed = wrapper.flush()
        runs.append((params, flushed, feed(wrapper, params, draws[cut:]), wrapper.statistics()))
    (uncut, *expected), (resumed, *got) = runs
    assert got == expected
    assert equal(resumed, uncut)


@every_case
def test_a_file_of_010_still_loads_in_mid_window(case):
    """It lacks the norms of the last draw, without which only flush() differs."""
    draws, whole = stream(40), parameters()
    wrapper = case.make(adamw(whole), min_draws=2)
    decisions = feed(wrapper, whole, draws)
    params = parameters()
    before = case.make(adamw(params), min_draws=2)
    feed(before, params, draws[:13])
    state = before.state_dict()
    own = state["wrappers"][0]
    for name in ("grad_norm", "draw_norm", "tensor_norms", "metric_sum"):
        own.pop(name)
    after = case.make(adamw(params), min_draws=2)
    after.load_state_dict(state)
    assert feed(after, params, draws[13:], start=13) == decisions[13:]
    assert equal(params, whole)


@every_case
@both_windows
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_in_mid_window_goes_on_alike(case, accumulate, copied):
    draws = stream(40)
    params = parameters()
    wrapper = case.make(adamw(params), **options(case, accumulate))
    cut = 1 + feed(wrapper, params, draws[:20]).count(True)
    feed(wrapper, params, draws[20 : 20 + cut])
    twins, twin = copied((params, wrapper))
    rest = draws[20 + cut :]
    assert feed(twin, twins, rest) == feed(wrapper, params, rest)
    assert equal(twins, params)
    assert twin.param_groups[0]["params"][0] is twins[0]


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_steps_with_the_mean(case, dtype):
    params = parameters(dtype)
    seen = []
    optimizer = torch.optim.SGD(params, lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: seen.append([p.grad.clone() for p in params]))
    wrapper = case.make(optimizer)
    draws = [[g.to(dtype).float() for g in grads] for grads in stream(30)]
    window, count = [], 0
    for grads in draws:
        window.append(grads)
        backward(params, grads)
        if wrapper.step(metric=1.0):
            for grad, mean in zip(seen[count], case.changes(mean_of(window)), strict=True):
                assert grad.dtype == dtype
                # one rounding of the mean to the dtype, plus the float32 sum's own
                tolerance = 2 * torch.finfo(dtype).eps
                torch.testing.assert_close(
                    grad.double(),
                    mean,
                    rtol=tolerance,
                    atol=tolerance * global_norm(mean_of(window)),
                )
            window, count = [], count + 1
    assert count >= 3


@every_case
def test_parameters_without_a_gradient_stay_as_they_are(case):
    params = parameters()
    frozen = torch.ones(3)
    wrapper = case.make(adamw([*params, frozen]))
    for grads in stream(40):
        backward(params, [grads[0], None, grads[2]])
        wrapper.step(metric=1.0)
    assert equal([params[1]], [parameters()[1]])
    assert equal([frozen], [torch.ones(3)])
    assert not torch.equal(params[0], parameters()[0])


@every_case
def test_a_parameter_may_have_a_gradient_only_sometimes(case):
    """A draw without a gradient for it counts as a zero one: the mean is over all draws."""
    params = parameters()
    seen = []
    optimizer = torch.optim.SGD(params, lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: seen.append(params[1].grad))
    wrapper = case.make(optimizer)
    draws = [
        [g if k != 1 or i % 2 else None for k, g in enumerate(d)] for i, d in enumerate(stream(40))
    ]
    window = []
    for grads in draws:
        window.append(
            [g if g is not None else torch.zeros(s) for g, s in zip(grads, SHAPES, strict=True)]
        )
        backward(params, grads)
        if wrapper.step(metric=1.0):
            expected = case.changes(mean_of(window))[1].float()
            got = seen[-1] if seen[-1] is not None else torch.zeros(SHAPES[1])
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
            window = []


@every_case
@both_windows
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_draw_is_discarded_and_leaves_no_trace(case, accumulate, bad):
    """With a buffer the run equals one without that draw; with .grad, without its window."""
    draws = stream(40)
    clean, dirty = parameters(), parameters()
    reference = case.make(adamw(clean), **options(case, accumulate))
    wrapper = case.make(adamw(dirty), **options(case, accumulate))
    feed(reference, clean, draws[:10])
    feed(wrapper, dirty, draws[:10])
    poisoned = [g.clone() for g in draws[10]]
    poisoned[1][2] = bad
    in_grad = isinstance(wrapper._window, gqc.wrappers.grad_window.GradWindow)
    pending = wrapper.num_draws
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backward(dirty, poisoned)
        assert not wrapper.step(metric=1.0)
        while in_grad and wrapper.num_draws:  # SBC and Replay look at the step
            backward(dirty, poisoned)
            assert not wrapper.step(metric=1.0)
            pending += 1
    assert len(caught) == 1
    assert "NaN or infinite" in str(caught[0].message)
    assert wrapper.statistics()["num_discarded"] == (pending + 1 if in_grad else 1)
    if in_grad:
        reference.discard()
    feed(reference, clean, draws[11:])
    feed(wrapper, dirty, draws[11:])
    assert equal(clean, dirty)
    assert all(p.isfinite().all() for p in dirty)


@every_case
@both_windows
def test_raise_names_the_parameter_and_keeps_the_gradient(case, accumulate):
    params = parameters()
    wrapper = case.make(adamw(params), nonfinite="raise", **options(case, accumulate))
    before = [p.detach().clone() for p in params]

    def draw_until_the_norm_is_read():
        for _ in range(7):
            bad = [torch.full(s, math.nan if k == 1 else 1.0) for k, s in enumerate(SHAPES)]
            backward(params, bad)
            wrapper.step(metric=1.0)

    with pytest.raises(FloatingPointError, match=r"parameters \[1\]"):
        draw_until_the_norm_is_read()
    assert equal(before, params)
    assert params[1].grad.isnan().all()
    wrapper.discard()
    assert wrapper.num_draws == 0
    assert all(p.grad is None for p in params)


@every_case
def test_ignore_checks_nothing(case):
    params = parameters()
    wrapper = case.make(adamw(params), nonfinite="ignore", max_draws=6)
    for _ in range(6):
        backward(params, [torch.full(s, math.nan) for s in SHAPES])
        wrapper.step(metric=1.0)
    assert wrapper.statistics()["steps"] >= 1
    assert params[0].isnan().all()


@every_case
def test_several_groups_step_together_each_with_its_own_settings(case):
    draws = stream(40)
    split, bare = parameters(), parameters()
    groups = [{"params": split[:1], "lr": 0.1}, {"params": split[1:]}]
    wrapper = case.make(torch.optim.SGD(groups, lr=0.01))
    optimizer = torch.optim.SGD([{"params": bare[:1], "lr": 0.1}, {"params": bare[1:]}], lr=0.01)
    window = []
    for i, grads in enumerate(draws):
        window.append(grads)
        backward(split, grads)
        if wrapper.step(metric=metric(i)):
            for param, grad in zip(bare, case.changes(mean_of(window)), strict=True):
                param.grad = grad.float()
            optimizer.step()
            window = []
    for a, b in zip(split, bare, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    statistics = wrapper.statistics()
    assert statistics["lr/group_1"] == 0.01
    assert statistics["lr"] == statistics["lr/group_0"] == 0.1


@every_case
def test_an_added_group_gets_the_tunables(case):
    params = parameters()
    wrapper = case.make(adamw(params[:1]))
    wrapper.add_param_group({"params": params[1:2]})
    wrapper.optimizer.add_param_group({"params": params[2:]})
    for group in wrapper.param_groups:
        for name in wrapper.strictest:
            assert group[name] == wrapper.param_groups[0][name]
    feed(wrapper, params, stream(30))
    assert not torch.equal(params[2], parameters()[2])


@every_case
def test_an_added_group_gets_the_tunables_that_were_set(case):
    params = parameters()
    wrapper = case.make(adamw(params[:1]))
    for name in wrapper.strictest:
        setattr(wrapper, name, 3 * getattr(wrapper, name))
    tripled = {name: getattr(wrapper, name) for name in wrapper.strictest}
    wrapper.add_param_group({"params": params[1:2]})
    wrapper.add_param_group({"params": params[2:], "lr": 1e-3})
    assert {name: getattr(wrapper, name) for name in wrapper.strictest} == tripled
    assert all(group.items() >= tripled.items() for group in wrapper.param_groups)


@every_case
@pytest.mark.parametrize("scheduled", ["wrapper", "inner"])
def test_a_torch_scheduler_warns_of_nothing(case, scheduled):
    params = parameters()
    optimizer = adamw(params)
    if scheduled == "inner":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    wrapper = case.make(optimizer)
    if scheduled == "wrapper":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(wrapper, 40)
    for grads in stream(20):
        backward(params, grads)
        wrapper.step(metric=1.0)
        scheduler.step()
    assert wrapper.param_groups[0]["lr"] == pytest.approx(0.025)


@every_case
@both_windows
def test_zero_grad_keeps_an_open_window_and_says_so_where_it_did_nothing(case, accumulate):
    """Clearing after each step, as trainers do, changes nothing."""
    params = parameters()
    kwargs = {"min_draws": 2, **options(case, accumulate)}
    wrapper = case.make(adamw(params), **kwargs)
    draws = stream(40)
    first = parameters()
    reference = case.make(adamw(first), **kwargs)
    decisions = feed(reference, first, draws)
    got = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i, grads in enumerate(draws):
            wrapper.zero_grad()
            backward(params, grads)
            got.append(wrapper.step(metric=metric(i)))
    assert got == decisions
    assert equal(first, params)
    assert len(caught) == wrapper.sums_in_grad
    assert all("zero_grad() was ignored" in str(warning.message) for warning in caught)


@every_case
@both_windows
def test_flush_steps_with_what_is_there_and_discard_drops_it(case, accumulate):
    params, bare = parameters(), parameters()
    kwargs = {"min_draws": 2, **options(case, accumulate)}
    wrapper = case.make(torch.optim.SGD(params, lr=0.1), **kwargs)
    optimizer = torch.optim.SGD(bare, lr=0.1)
    assert wrapper.flush() is False
    big = [torch.full(s, 100.0 + k) for k, s in enumerate(SHAPES)]
    backward(params, big)
    assert wrapper.step(metric=1.0) is False
    assert wrapper.flush() is True
    assert wrapper.last_num_draws == 1
    for param, grad in zip(bare, case.changes([g.double() for g in big]), strict=True):
        param.grad = grad.float()
    optimizer.step()
    for a, b in zip(params, bare, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)
    before = [p.detach().clone() for p in params]
    backward(params, big)
    assert wrapper.step(metric=1.0) is False
    wrapper.discard()
    assert wrapper.num_draws == 0
    assert wrapper.flush() is False
    assert equal(before, params)


@every_case
@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
def test_an_overflow_under_a_grad_scaler_is_dropped_and_backs_the_scale_off(case, accumulate):
    draws = stream(40)
    plain, scaled = parameters(), parameters()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10_000)
    kwargs = options(case, accumulate)
    reference = case.make(adamw(plain), **kwargs)
    wrapper = case.make(adamw(scaled), grad_scaler=scaler, **kwargs)
    feed(reference, plain, draws[:10])
    for i, grads in enumerate(draws[:10]):
        backward(scaled, [scaler.scale(g) for g in grads])
        wrapper.step(metric=metric(i))
    in_grad = isinstance(wrapper._window, gqc.wrappers.grad_window.GradWindow)
    while True:
        backward(scaled, [torch.full(s, math.inf) for s in SHAPES])
        assert not wrapper.step(metric=1.0)
        if not in_grad or wrapper.num_draws == 0:
            break
    assert scaler.get_scale() == 512.0
    if in_grad:
        reference.discard()
    rest = feed(reference, plain, draws[11:])
    got = []
    for i, grads in enumerate(draws[11:]):
        backward(scaled, [scaler.scale(g) for g in grads])
        got.append(wrapper.step(metric=metric(i)))
    assert got == rest
    norms = [w.statistics()["last_grad_norm"] for w in (wrapper, reference)]
    assert norms[0] is norms[1] is None or norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert equal(plain, scaled)  # scales are powers of two: no rounding


@every_case
def test_bad_arguments_are_refused_with_their_name_and_value(case):
    cls = type(case.make(adamw(parameters())))
    for kwargs, message in case.bad:
        with pytest.raises((ValueError, TypeError)) as caught:
            cls(adamw(parameters()), **kwargs)
        assert message in str(caught.value)


@every_case
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_draws": 0}, "max_draws=0"),
        ({"min_draws": 9, "max_draws": 8}, "max_draws=8: expected an integer >= 9, min_draws"),
        ({"min_draws": 0}, "min_draws=0"),
        ({"min_draws": 2.5}, "min_draws=2.5"),
        ({"nonfinite": "skip"}, "nonfinite='skip'"),
        ({"accumulate": "hooks"}, "accumulate='hooks'"),
    ],
)
def test_bad_options_are_refused(case, kwargs, message):
    optimizer = adamw(parameters())
    with pytest.raises(ValueError, match=message.replace("'", ".")):
        case.make(optimizer, **kwargs)
    assert not any(name in optimizer.defaults for name in ("gradient_norm_threshold",))


@every_case
def test_what_cannot_be_wrapped_is_refused(case):
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer"):
        case.make(object())
    with pytest.raises(TypeError, match="LBFGS"):
        case.make(torch.optim.LBFGS(parameters()))


@every_case
def test_a_file_that_does_not_fit_changes_nothing(case):
    params = parameters()
    wrapper = case.make(adamw(params))
    feed(wrapper, params, stream(5))
    before = reload(wrapper.state_dict())
    other = case.make(adamw(parameters()[:2]))
    plain = adamw(parameters()).state_dict()
    foreign = copy.deepcopy(before)
    foreign["wrappers"][-1]["class"] = "OptimizerWrapperOther"
    newer = copy.deepcopy(before)
    newer["wrappers"][-1]["format"] = 99
    for state, message in [
        (plain, "plain optimizer"),
        (foreign, "OptimizerWrapperOther"),
        (newer, "format 99"),
        (other.state_dict(), "parameters"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrapper.load_state_dict(state)
    after = reload(wrapper.state_dict())
    assert after["wrappers"][-1].keys() == before["wrappers"][-1].keys()
    assert after["wrappers"][-1]["counts"] == before["wrappers"][-1]["counts"]
    assert all(
        torch.equal(v, after["wrappers"][-1]["pending"][k])
        for k, v in before["wrappers"][-1]["pending"].items()
    )


@every_case
def test_sparse_gradients_are_refused_before_a_step(case):
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    before = embedding.weight.detach().clone()
    wrapper = case.make(torch.optim.SGD(embedding.parameters(), lr=0.1))

    def draw_until_the_gradient_is_looked_at():
        for _ in range(7):
            embedding(torch.tensor([1, 2])).sum().backward()
            wrapper.step(metric=1.0)

    with pytest.raises(TypeError, match="sparse"):
        draw_until_the_gradient_is_looked_at()
    assert torch.equal(embedding.weight, before)


@every_case
def test_hooks_run_and_the_closure_makes_the_gradient(case):
    params = parameters()
    wrapper = case.make(adamw(params))
    calls = []
    wrapper.register_step_pre_hook(lambda *_: calls.append("pre"))
    wrapper.register_step_post_hook(lambda *_: calls.append("post"))
    wrapper.register_state_dict_post_hook(lambda opt, state: {**state, "mine": 1})
    wrapper.register_load_state_dict_pre_hook(lambda opt, state: calls.append("load"))

    def closure():
        calls.append("closure")
        assert torch.is_grad_enabled()
        sum((p**2).sum() for p in params).backward()

    wrapper.step(closure, metric=1.0)
    assert wrapper.statistics()["batches"] == 2
    assert calls == ["pre", "closure", "post"]
    state = wrapper.state_dict()
    assert state["mine"] == 1
    wrapper.load_state_dict(state)
    assert calls[-1] == "load"
