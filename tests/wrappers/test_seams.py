"""Seams between the wrapper and the loop: other wrappers, graphs, errors, checkpoints.

Each with both places of the sum; parameters move by minus the mean gradient (SGD, lr 1).
"""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint
from wrappers.habits import Broken, draw

import gqc
from gqc.integrations import attach
from gqc.schedules import get_linear_schedule

both_windows = pytest.mark.parametrize("accumulate", ["grad", "buffer"])
quiet_graphs = pytest.mark.filterwarnings("ignore:Using backward.. with create_graph:UserWarning")


def scalar(value: float = 0.0) -> torch.Tensor:
    return torch.tensor([value], requires_grad=True)


def sbc(params, num_draws: float, **options):
    return gqc.OptimizerWrapperSBC(SGD(params, lr=1.0), 1, num_draws, **options)


# Several wrappers of the same parameters


@both_windows
@pytest.mark.parametrize("are_all_shared", [False, True])
def test_two_wrappers_that_step_with_one_backward_are_refused(are_all_shared, accumulate):
    x, a, b = scalar(), scalar(), scalar()
    first = sbc([x] if are_all_shared else [x, a], 1, accumulate=accumulate)
    second = sbc([x] if are_all_shared else [x, b], 1, accumulate=accumulate)
    (x + a + b).sum().backward()
    first.step()
    with pytest.raises(RuntimeError, match=r"another wrapper.*a backward\(\) of its own"):
        second.step()
    assert (x.item(), b.item()) == (-1.0, 0.0)


def test_two_wrappers_with_a_backward_each_share_a_trunk():
    x, a, b = scalar(), scalar(), scalar()
    first, second = sbc([x, a], 2), sbc([x, b], 2)
    for grad in (1.0, 3.0):
        (grad * (x + a)).sum().backward()
        first.step()
        (10 * grad * (x + b)).sum().backward()
        second.step()
    assert (x.item(), a.item(), b.item()) == (-22.0, -2.0, -20.0)


@both_windows
@pytest.mark.parametrize("is_alive", [False, True])
def test_a_wrapper_that_nobody_steps_any_more_is_in_nobodys_way(is_alive, accumulate):
    """A cell that makes the wrapper runs again; a loop may also clear a gradient by hand."""
    x, y = scalar(), scalar()
    former = sbc([x, y], 2, accumulate="buffer")
    (x + y).sum().backward()
    former.step()
    wrapper = sbc([x, y], 2, accumulate=accumulate)
    if not is_alive:
        del former
        gc.collect()
        assert len(x._post_accumulate_grad_hooks) == 1
    for grad in (1.0, 3.0):
        (grad * (x + y)).sum().backward()
        if accumulate == "buffer":
            y.grad = None
        wrapper.step()
    assert (x.item(), y.item()) == (-2.0, 0.0 if accumulate == "buffer" else -2.0)


def test_a_gan_steps_two_wrappers_of_different_parameters_with_one_backward():
    x, y = scalar(), scalar()
    first, second = sbc([x], 1), sbc([y], 1)
    (2 * x + 3 * y).sum().backward()
    assert (first.step(), second.step()) == (True, True)
    assert (x.item(), y.item()) == (-2.0, -3.0)


# Graphs of gradients


@both_windows
@quiet_graphs
@pytest.mark.parametrize("is_linear", [False, True])
def test_a_backward_with_a_graph_does_not_hide_what_a_refused_step_has_left(is_linear, accumulate):
    x, y = scalar(1.0), scalar(1.0)
    wrapper = sbc([x, y], 2, accumulate=accumulate)

    def backward(*params):
        sum(p.sum() if is_linear else p.square().sum() / 2 for p in params).backward(
            create_graph=True
        )

    backward(y)
    with pytest.raises(ValueError, match="weight=-1"):
        wrapper.step(weight=-1)
    backward(x, y)
    for _ in range(2):  # also if it is simply called again
        with pytest.raises(RuntimeError, match=r"another backward\(\) has added to it.*zero_grad"):
            wrapper.step()
    wrapper.zero_grad()
    backward(x, y)
    wrapper.step()
    assert (x.grad is None or accumulate == "grad", wrapper.num_draws) == (True, 1)
    x.grad = y.grad = None  # the graph is a cycle


@both_windows
def test_what_a_refused_step_has_left_may_be_looked_at_cleared_or_drawn(accumulate):
    x = scalar()
    for way in ("again", "penalty", "zeroed", "none"):
        wrapper = sbc([x], 1, accumulate=accumulate)
        x.sum().backward()
        with pytest.raises(ValueError, match="weight=-1"):
            wrapper.step(weight=-1)
        if way == "penalty":
            torch.autograd.grad(x.square().sum(), [x])
        elif way == "zeroed":
            x.grad.zero_()
        elif way == "none":
            x.grad = None
        if way in ("zeroed", "none"):
            x.sum().backward()
        if way == "zeroed" and accumulate == "grad":
            wrapper.accept_gradients()
        wrapper.step(weight=1)
    assert x.item() == -4.0
    assert not x._backward_hooks


@both_windows
def test_what_a_refused_step_has_left_is_seen_though_it_was_clipped(accumulate):
    x = scalar()
    wrapper = sbc([x], 2, accumulate=accumulate)
    x.sum().backward()
    with pytest.raises(ValueError, match="weight=-1"):
        wrapper.step(weight=-1)
    torch.nn.utils.clip_grad_norm_([x], 0.5)
    x.sum().backward()
    with pytest.raises(RuntimeError, match=r"another backward\(\) has added to it"):
        wrapper.step(weight=1)


@both_windows
@quiet_graphs
def test_a_sum_with_a_graph_that_was_cleared_in_mid_window_is_missed(accumulate):
    x = scalar(1.0)
    wrapper = sbc([x], 2, accumulate=accumulate)
    for number in range(2):
        x.grad = None if number else x.grad
        x.square().sum().backward(create_graph=True)
        if accumulate == "grad" and number:
            with pytest.raises(RuntimeError, match="cleared or replaced in mid-window"):
                wrapper.step()
            break
        wrapper.step()
    else:
        assert x.item() == -1.0
    x.grad = None


@both_windows
@quiet_graphs
def test_several_backwards_with_a_graph_make_one_draw(accumulate):
    x = scalar(1.0)
    wrapper = sbc([x], 2, accumulate=accumulate)
    for grad in (1.0, 3.0):
        for _ in range(2):
            (x.square() * grad / 4).sum().backward(create_graph=True)
        wrapper.step()
    assert x.item() == -1.0
    x.grad = None


# Backwards that break off


def break_off(x: torch.Tensor, y: torch.Tensor) -> None:
    with pytest.raises(MemoryError):
        (Broken.apply(y, MemoryError()) + 100 * x).sum().backward()


@both_windows
def test_a_part_of_a_gradient_is_no_draw(accumulate):
    """Where the error is caught, and the loop goes on to its step."""
    x, y = scalar(), scalar()
    wrapper = sbc([x, y], 1, accumulate=accumulate)
    break_off(x, y)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"left a part of a gradient.*zero_grad\(\)"):
            wrapper.step()
    wrapper.zero_grad()
    draw(x, wrapper, 3.0)
    assert x.item() == -3.0


@both_windows
def test_a_batch_is_tried_again_after_its_gradient_was_cleared(accumulate):
    model = torch.nn.ParameterList([scalar(), scalar()])
    wrapper = sbc(model.parameters(), 1, accumulate=accumulate)
    for grad in (3.0, 5.0):
        break_off(*model)
        model.zero_grad()
        (grad * model[0] + grad * model[1]).sum().backward()
        wrapper.step()
    assert [p.item() for p in model] == [-8.0, -8.0]


@both_windows
def test_a_backward_within_a_backward_is_no_broken_one(accumulate):
    """Checkpoints of torch that run backward themselves."""
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3)))
    plain = copy.deepcopy(model)
    wrapper, sgd = sbc(model.parameters(), 2, accumulate=accumulate), SGD(plain.parameters(), 1.0)
    for seed in range(4):
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        hidden = inputs
        for layer in model:
            hidden = torch.utils.checkpoint.checkpoint(layer, hidden.tanh(), use_reentrant=True)
        hidden.square().mean().backward()
        hidden = inputs
        for layer in plain:
            hidden = layer(hidden.tanh())
        (hidden.square().mean() / 2).backward()
        if wrapper.step():
            sgd.step(), sgd.zero_grad()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


# Checkpoints in the wrong place


@both_windows
def test_the_state_of_a_wrapper_is_refused_where_its_window_would_be_lost(accumulate):
    x = scalar()
    wrapper = sbc([x], 2, accumulate=accumulate)
    draw(x, wrapper, 1.0)
    state = copy.deepcopy(wrapper.state_dict())
    with pytest.raises(ValueError, match=r"SGD with the state of a wrapper.*load_state_dict\("):
        wrapper.optimizer.load_state_dict(state)
    draw(x, wrapper, 3.0)
    assert x.item() == -2.0
    sgd = SGD([x], lr=1.0)
    sgd.load_state_dict(state)
    with pytest.raises(ValueError, match=r"SGD with the state of a wrapper.*param_groups\[0\]"):
        gqc.OptimizerWrapperSBC(sgd, 1, 2)
    del sgd.param_groups[0]["wrappers"]
    gqc.OptimizerWrapperSBC(sgd, 1, 2)


def test_the_state_of_a_wrapper_leaves_no_mark_in_the_groups():
    x = scalar()
    inner = gqc.OptimizerWrapperVGS(SGD([x], lr=1.0))
    wrapper = gqc.OptimizerWrapperSBC(inner, 1, 2)
    wrapper.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    assert "wrappers" not in wrapper.param_groups[0]
    state = wrapper.state_dict()
    for group in state["param_groups"]:  # a file of 0.1.0 had none
        group.pop("wrappers")
    wrapper.load_state_dict(state)
    with pytest.raises(ValueError, match="SGD with the state of a wrapper"):
        wrapper.innermost.load_state_dict(state)


# What a draw, a file or a hook leaves where nobody looks


def drawn(wrapper, loss: torch.Tensor, **given) -> bool:
    loss.backward()
    return wrapper.step(**given)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_an_overflow_leaves_the_sum_of_what_had_no_gradient(is_frozen):
    """GradScaler unscales what it looks at: an expert's pending sum must not be that."""
    x, y = scalar(), scalar()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    wrapper = sbc([x, y], 2, grad_scaler=scaler)
    for number, loss in enumerate((lambda: x + y, lambda: float("inf") * x, lambda: x + y)):
        y.requires_grad_(number == 0 or not is_frozen)
        scaler.scale(loss().sum()).backward()
        wrapper.step()
    assert (x.item(), y.item()) == (-1.0, -0.5 if is_frozen else -1.0)


def test_a_refused_microbatch_is_left_alone_in_grad():
    x, y = scalar(), scalar()
    wrapper = sbc([x, y], 3, nonfinite="raise")
    drawn(wrapper, (x + y).sum())
    drawn(wrapper, (2 * x).sum())
    (5 * x + float("inf") * y).sum().backward()
    with pytest.raises(FloatingPointError, match=r"left in \.grad"):
        wrapper.step()
    assert x.grad.item() == 5.0
    for param in (x, y):
        param.grad.zero_()  # as model.zero_grad(set_to_none=False) does
    wrapper.step()
    assert (x.item(), y.item()) == (-1.0, pytest.approx(-1 / 3))


@both_windows
def test_no_file_is_made_while_the_wrapped_optimizer_steps(accumulate):
    """The mean is handed on, and the file would hold draws without a gradient."""
    x, files = scalar(), []
    wrapper = sbc([x], 2, accumulate=accumulate, on_step=lambda _: files.append(save()))
    save = lambda *_: copy.deepcopy(wrapper.state_dict())  # noqa: E731
    hook = wrapper.optimizer.register_step_post_hook(save)
    drawn(wrapper, x.sum())
    with pytest.raises(RuntimeError, match="or in on_step="):
        drawn(wrapper, x.sum())
    hook.remove()
    for _ in range(2):
        drawn(wrapper, x.sum())
    assert [own["num_draws"] for own in files[0]["wrappers"]] == [0]


@pytest.mark.parametrize("between", [False, True])
def test_a_wrapper_that_no_tunable_betrays_is_not_put_around_itself(between):
    for wrap in (gqc.OptimizerWrapperVGS, lambda o: gqc.OptimizerWrapperReplay(o, [2])):
        optimizer = wrap(SGD([scalar()], lr=1.0))
        optimizer = gqc.OptimizerWrapperSBC(optimizer, 1, 2) if between else optimizer
        with pytest.raises(ValueError, match="around another: wrap once"):
            wrap(optimizer)


def test_an_error_in_a_step_leaves_the_next_window_to_the_scaler():
    x, scaler = scalar(), torch.amp.GradScaler("cpu", init_scale=256.0)
    wrapper = sbc([x], 2, grad_scaler=scaler)

    def fail(*_):
        hook.remove()
        raise KeyboardInterrupt

    hook = wrapper.optimizer.register_step_pre_hook(fail)
    drawn(wrapper, scaler.scale(10 * x.sum()))
    with pytest.raises(KeyboardInterrupt):
        drawn(wrapper, scaler.scale(10 * x.sum()))
    for _ in range(2):
        drawn(wrapper, scaler.scale(x.sum()))
    assert x.item() == -1.0


def test_on_step_is_called_once_a_step_also_where_a_hook_fails():
    """At that step; it used to come with the next draw, or not at all where that stepped too."""
    x, told = scalar(), []
    wrapper = sbc([x], 2, on_step=lambda numbers: told.append((numbers["steps"], x.item())))

    def fail(*_):
        if wrapper.num_draws == 0:
            raise KeyboardInterrupt

    hook = wrapper.register_step_post_hook(fail)
    drawn(wrapper, x.sum())
    with pytest.raises(KeyboardInterrupt):
        drawn(wrapper, x.sum())
    assert told == [(1, -1.0)]
    hook.remove()
    for _ in range(2):
        drawn(wrapper, x.sum())
    assert told == [(1, -1.0), (2, -2.0)]


def test_a_file_that_on_step_saves_holds_the_schedule_after_its_draw():
    def make(**options):
        wrapper = gqc.OptimizerWrapperGNTS(SGD([x := scalar()], lr=1.0), **options)
        attach(get_linear_schedule(wrapper, 4.0, 1.0, 10, key="gradient_norm_threshold"))
        return x, wrapper

    files, told = [], []

    def save(numbers):
        told.append(numbers["gradient_norm_threshold"])
        files.append(copy.deepcopy(wrapper.state_dict()))

    x, wrapper = make(on_step=save)
    for _ in range(3):
        drawn(wrapper, 0.1 * x.sum())
    assert told == pytest.approx([4.0, 3.7, 3.4])  # by which the windows were closed
    _, resumed = make()
    resumed.load_state_dict(files[-1])
    assert resumed.gradient_norm_threshold == wrapper.gradient_norm_threshold == 3.1


def test_a_schedule_that_is_made_after_its_optimizer_was_loaded_has_to_be_loaded_too():
    def make(state=None):
        wrapper = gqc.OptimizerWrapperGNTS(SGD([x := scalar()], lr=1.0))
        if state is not None:
            wrapper.load_state_dict(state)
        return x, wrapper, get_linear_schedule(wrapper, 4.0, 1.0, 10, key="gradient_norm_threshold")

    x, wrapper, schedule = make()
    for _ in range(3):
        drawn(wrapper, 0.1 * x.sum())
        schedule.step()
    state, own = copy.deepcopy(wrapper.state_dict()), schedule.state_dict()
    remedies = {None: 3.1, lambda s: s.load_state_dict(own): 2.8, lambda s: s.go_to(0): 3.7}
    for remedy, after in remedies.items():
        x, resumed, schedule = make(state)
        assert resumed.gradient_norm_threshold == 3.1
        if remedy is not None:
            remedy(schedule)
        drawn(resumed, 0.1 * x.sum())
        if remedy is None:
            with pytest.raises(RuntimeError, match="but not its schedule"):
                schedule.step()
        else:
            schedule.step()
        assert resumed.gradient_norm_threshold == pytest.approx(after)
    _, fresh, _ = make(make()[1].state_dict())  # of no microbatch: nothing is to be continued
    assert fresh.gradient_norm_threshold == 4.0
    _, resumed, schedule = make(state)
    attach(schedule)  # the file has no schedule: it stays where it is
    assert resumed.gradient_norm_threshold == 4.0
    copied = copy.deepcopy(wrapper)  # is no file: what is made for it begins
    get_linear_schedule(copied, 2.0, 1.0, 10, key="gradient_norm_threshold")
    assert copied.gradient_norm_threshold == 2.0


def test_a_state_of_draws_without_a_gradient_is_refused():
    """As a file could be that was saved within a step, before that was refused."""
    x = scalar()
    wrapper = sbc([x], 2)
    drawn(wrapper, x.sum())
    state = copy.deepcopy(wrapper.state_dict())
    state["wrappers"][0]["pending"] = {}
    with pytest.raises(ValueError, match="draws without a gradient"):
        wrapper.load_state_dict(state)


def test_weights_that_are_no_binary_fractions_fill_a_batch():
    x = scalar()
    wrapper = gqc.OptimizerWrapperSBC(SGD([x], lr=1.0), 1, 1.0)
    steps = [drawn(wrapper, x.sum(), weight=0.1) for _ in range(20)]
    assert [n for n, stepped in enumerate(steps, 1) if stepped] == [10, 20]


@both_windows
def test_a_module_inside_and_outside_of_a_reentrant_checkpoint_is_drawn(accumulate):
    a, b = (torch.nn.Linear(1, 1, bias=False) for _ in range(2))
    wrapper = sbc([*a.parameters(), *b.parameters()], 3, accumulate=accumulate)
    for _ in range(2):
        inside = checkpoint(b, torch.ones(1, requires_grad=True), use_reentrant=True)
        drawn(wrapper, a(b(inside)).sum())
    assert wrapper.num_draws == 2


def test_a_joined_optimizer_takes_no_member_whose_file_would_lose_something():
    x, y = scalar(), scalar()
    for member in (sbc([x], 2), gqc.UPGDW([x], lr=0.1)):
        with pytest.raises(TypeError, match=r"would lose what .* saves beside its state"):
            gqc.JoinedOptimizer([member, SGD([y], lr=1.0)])


def test_correlation_counts_a_tensor_without_a_gradient_as_zeros():
    a, b = (torch.zeros(n, requires_grad=True) for n in (2, 3))
    correlation, expected = (gqc.diagnostics.DrawCorrelation(far=2) for _ in range(2))
    wrapper = gqc.OptimizerWrapperGNS(SGD([a, b], lr=0.0), correlation=correlation)
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        part = b if number % 2 else a
        noise = torch.randn(part.shape, generator=generator) + 1
        expected.update([noise if p is part else torch.zeros_like(p) for p in (a, b)])
        drawn(wrapper, (part * noise).sum())
    assert correlation.correlation() == pytest.approx(expected.correlation())
