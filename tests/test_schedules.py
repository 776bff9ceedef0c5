"""Schedules against their formulas, at and past their ends, for any key."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from fixtures.schedules.make import CUTS, FILE, MORE, SCHEDULES, edited, run
from problems import backward, parameters, stream

import gqc
from gqc.schedules import THRESHOLD, cosine_with_warmup, interpolate, power_growth

# The schedules of the fixtures are made on two groups, as those of version 0.1.0 were.
pytestmark = pytest.mark.filterwarnings(r"ignore:the param groups have lr .0\.1, 0\.2.:UserWarning")


def wrapper(**kwargs) -> gqc.OptimizerWrapperGNTS:
    return gqc.OptimizerWrapperGNTS(torch.optim.SGD(parameters(), lr=0.1), **kwargs)


def sbc() -> gqc.OptimizerWrapperSBC:
    return gqc.OptimizerWrapperSBC(torch.optim.SGD(parameters(), lr=0.1), 4, 8.0)


def values(schedule, num: int) -> list[float]:
    seen = [schedule.get_last_value()[0]]
    for _ in range(num):
        schedule.step()
        seen.append(schedule.get_last_value()[0])
    return seen


def cosine(t, warmup, total, first, start, end):
    if t < warmup:
        return first + (start - first) * t / warmup
    x = min((t - warmup) / (total - warmup), 1.0) if total > warmup else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * x)) / 2


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (4, 10), (10, 10), (1, 1)])
def test_norm_threshold_cosine_follows_its_formula_and_holds_its_end(warmup, total):
    schedule = gqc.get_norm_threshold_cosine_annealing_with_warmup(
        wrapper(), warmup, total, start_norm=0.8, end_norm=0.2, warmup_multiplier=5.0
    )
    expected = [cosine(t, warmup, total, 4.0, 0.8, 0.2) for t in range(total + 6)]
    assert values(schedule, total + 5) == pytest.approx(expected, abs=1e-12)
    assert schedule.get_last_value() == [0.2]


def test_defaults_are_inverted_warmup_from_ten_to_one_then_to_zero():
    seen = values(gqc.get_norm_threshold_cosine_annealing_with_warmup(wrapper(), 2, 4), 6)
    assert seen == pytest.approx([10.0, 5.5, 1.0, 0.5, 0.0, 0.0, 0.0])


def test_direct_cosine_warms_up_from_zero_on_the_lr():
    opt = wrapper()
    schedule = gqc.get_direct_cosine_annealing_with_warmup(opt, 10.0, 4, 10, min_value=1.0)
    expected = [cosine(t, 4, 10, 0.0, 10.0, 1.0) for t in range(13)]
    assert values(schedule, 12) == pytest.approx(expected)
    assert opt.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 3.0])
def test_batch_schedules_grow_as_a_power_and_hold(exponent):
    schedule = gqc.get_curved_batch_schedule(sbc(), 8, 64, 10, polynomial_exponent=exponent)
    expected = [8 + 56 * min(t / 10, 1.0) ** exponent for t in range(15)]
    assert values(schedule, 14) == pytest.approx(expected)
    if exponent == 2.0:
        quadratic = gqc.get_quadratic_batch_schedule(sbc(), 8, 64, 10)
        assert values(quadratic, 14) == pytest.approx(expected)


@pytest.mark.parametrize("key", ["betas", "params", "amsgrad", "foreach", "nope"])
def test_only_numbers_of_the_groups_are_scheduled(key):
    optimizer = torch.optim.Adam([torch.zeros(2, requires_grad=True)])
    before = dict(optimizer.param_groups[0])
    with pytest.raises(
        KeyError, match=rf"has no '{key}': expected one of \['lr', 'eps', 'weight_dec"
    ):
        gqc.ParamGroupSchedule(optimizer, key, lambda step: 0.5)
    assert optimizer.param_groups[0] == before


def test_constant_and_linear():
    assert values(gqc.get_constant_schedule(wrapper(), 3.0, key=THRESHOLD), 3) == [3.0] * 4
    linear = gqc.get_linear_schedule(wrapper(), 4.0, 0.0, 4, key=THRESHOLD)
    assert values(linear, 6) == [4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0]


def test_piecewise_interpolates_holds_its_ends_and_can_be_edited_while_it_runs():
    schedule = gqc.PiecewiseSchedule(wrapper(), [(2, 4.0), (4, 1.0), (8, 3.0)])
    assert values(schedule, 10) == [4, 4, 4, 2.5, 1, 1.5, 2, 2.5, 3, 3, 3]
    schedule.points = [(0, 9.0)]
    assert schedule.get_last_value() == [3.0]  # from the next step on
    schedule.step()
    assert schedule.get_last_value() == [9.0]
    for bad in (
        [],
        None,
        [1, 2],
        [(0, "a")],
        [(0, 1), (0, 2)],
        [(1, 1), (0, 2)],
        [(0, math.nan)],
        [(math.inf, 1)],
    ):
        with pytest.raises(ValueError, match="expected"):
            schedule.points = bad
    assert schedule.points == [(0.0, 9.0)]
    schedule.points[:] = [(0, 5.0), (24, 1.0)]  # in place: taken and checked at the next step
    schedule.step()
    assert (schedule.last_step, schedule.get_last_value()) == (12, [3.0])
    schedule.points.append((4, 9.0))
    with pytest.raises(ValueError, match="steps 24, 4: expected strictly increasing"):
        schedule.step()


def test_interpolate_at_its_points_is_exact():
    points = [(0.0, 0.1), (3.0, 0.7), (10.0, 0.2)]
    assert [interpolate(points, x) for x, _ in points] == [y for _, y in points]


def test_norm_warmup_goes_in_front_of_another_schedule():
    opt = wrapper()
    after = gqc.get_linear_schedule(opt, 2.0, 1.0, 2, key=THRESHOLD)
    schedule = gqc.NormWarmupScheduler(after, 4, warmup_start=5.0, warmup_end=1.0)
    assert values(schedule, 8) == pytest.approx([10, 8, 6, 4, 2, 1.5, 1, 1, 1])
    stepped = gqc.get_linear_schedule(opt, 2.0, 1.0, 2, key=THRESHOLD)
    stepped.step()
    with pytest.raises(ValueError, match="stepped 1 times"):
        gqc.NormWarmupScheduler(stepped, 4)
    with pytest.raises(RuntimeError, match="the NormWarmupScheduler around it"):
        after.step()  # it would write its own value over that of the warmup
    with pytest.raises(ValueError, match="attached, or stepped 0 times"):
        gqc.NormWarmupScheduler(after, 4)
    with pytest.raises(TypeError, match="DrawsSchedule does more at a step"):
        gqc.NormWarmupScheduler(gqc.schedules.DrawsSchedule(opt, 2, 1.0, 1.0), 4)
    for other in (opt, torch.optim.lr_scheduler.ExponentialLR(opt, 0.9), None):
        with pytest.raises(TypeError, match=f"is a {type(other).__name__}: expected a schedule"):
            gqc.NormWarmupScheduler(other, 4)


def test_sequential_lr_is_refused_with_what_takes_its_place():
    opt = wrapper()
    first, then = (gqc.get_linear_schedule(opt, *line, 4, key="lr") for line in ((0, 2), (2, 0)))
    torch_one = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
    with pytest.raises(TypeError, match=r"SequentialLR can't hold it.*ask others for value_at"):
        torch.optim.lr_scheduler.SequentialLR(opt, [first, torch_one], [4])

    def both(step):
        return first.value_at(step) if step < 4 else then.value_at(step - 4)

    one = gqc.ParamGroupSchedule(opt, "lr", both)
    assert values(one, 8) == [0.0, 0.5, 1.0, 1.5, 2.0, 1.5, 1.0, 0.5, 0.0]


def test_a_schedule_follows_groups_that_are_added_or_loaded():
    opt = wrapper()
    schedule = gqc.get_linear_schedule(opt, 4.0, 0.0, 4, key=THRESHOLD)
    opt.add_param_group({"params": [torch.zeros(2, requires_grad=True)]})
    schedule.step()
    assert schedule.get_last_value() == [3.0, 3.0]
    opt.load_state_dict(opt.state_dict())
    schedule.step()
    assert [g[THRESHOLD] for g in opt.param_groups] == [2.0, 2.0]


@pytest.mark.parametrize("cut", [0, 1, 5, 12])
def test_resume_is_exact(cut):
    def make():
        return gqc.get_norm_threshold_cosine_annealing_with_warmup(wrapper(), 3, 10)

    whole = values(make(), 14)
    first = make()
    values(first, cut)
    second = make()
    second.load_state_dict(first.state_dict())
    assert values(second, 14 - cut) == whole[cut:]
    piecewise, other = (gqc.PiecewiseSchedule(wrapper(), [(0, 1.0)]) for _ in range(2))
    piecewise.points = [(0, 5.0), (9, 1.0)]
    piecewise.go_to(cut)
    other.load_state_dict(piecewise.state_dict())
    assert values(other, 3) == values(piecewise, 3)


def test_a_line_resumed_at_another_length_is_the_new_one_unless_the_old_one_was_edited():
    def make(total):
        return gqc.get_linear_schedule(wrapper(), 4.0, 0.0, total, key=THRESHOLD)

    short, long = make(4), make(8)
    run(short, 2)
    long.load_state_dict(short.state_dict())
    assert (long.last_step, long.get_last_value()) == (2, [3.0])  # as a cosine does
    assert values(long, 7)[1:] == [2.5, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    short.points = [(0, 4.0), (4, 2.0)]
    before = long.state_dict()
    with pytest.raises(ValueError, match=r"made with .* and then edited.*then assign \.points"):
        long.load_state_dict(short.state_dict())
    assert long.state_dict() == before
    again = make(4)
    again.load_state_dict(short.state_dict())
    assert again.points == short.points
    again.points = [(0, 1.0)]
    again.load_state_dict(make(4).state_dict())
    assert again.get_last_value() == [4.0]


@pytest.mark.parametrize("key", ["lr", THRESHOLD])
def test_groups_with_values_of_their_own_are_not_made_alike_without_a_word(key):
    params = parameters()
    groups = [{"params": params[:1], key: 0.5}, {"params": params[1:], key: 0.25}]
    optimizer = gqc.OptimizerWrapperGNTS(torch.optim.SGD(groups, lr=0.1))
    with pytest.warns(UserWarning, match=rf"{key} \[0\.5, 0\.25\].*one value to all: give"):
        schedule = gqc.get_linear_schedule(optimizer, 0.5, 0.0, 5, key=key)
    schedule.step()
    assert schedule.get_last_value() == [0.4, 0.4]
    gqc.get_linear_schedule(optimizer, 0.5, 0.0, 5, key=key)  # they have one now


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_value_is_a_pure_function_of_the_step(name):
    schedule, stepped = SCHEDULES[name](), SCHEDULES[name]()
    before = schedule.state_dict(), schedule.get_last_value()
    ahead = [schedule.value_at(step) for step in range(1, 20)]
    assert (schedule.state_dict(), schedule.get_last_value()) == before
    assert ahead == [groups[0] for groups in run(stepped, 19)]
    schedule.go_to(7)
    assert (schedule.last_step, schedule.get_last_value()[0]) == (7, ahead[6])


def test_the_functions_need_no_optimizer():
    assert [cosine_with_warmup(2, 4, 10.0, 1.0, 0.0, t) for t in range(6)] == pytest.approx(
        [10, 5.5, 1, 0.5, 0, 0]
    )
    assert [power_growth(2, 1.0, 5.0, 2.0, t) for t in range(4)] == [1, 2, 5, 5]


SCHEDULES_OF_FUNCTIONS = {
    **{name: make for name, make in SCHEDULES.items() if name != "ParamGroupSchedule"},
    "own function": lambda: gqc.ParamGroupSchedule(wrapper(), "lr", partial(math.ldexp, 1.0)),
}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("name", SCHEDULES_OF_FUNCTIONS)
def test_copies_continue_and_stand_alone(name, copied):
    first = SCHEDULES_OF_FUNCTIONS[name]()
    run(first, 5)
    second = copied(first)
    assert second.optimizer is not first.optimizer
    assert second.get_last_value() == first.get_last_value()
    assert run(second, 6) == run(first, 6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_does_not_follow_the_points_of_the_original(copied):
    first = gqc.PiecewiseSchedule(wrapper(), [(0, 4.0), (8, 1.0)])
    warmed = gqc.NormWarmupScheduler(gqc.PiecewiseSchedule(wrapper(), [(0, 4.0)]), 2, 1.0)
    copies = copied(first), copied(warmed)
    first.points = warmed.scheduler.points = [(0, 9.0)]
    assert [s.value_at(8) for s in (first, warmed)] == [9.0, 9.0]
    assert [s.value_at(8) for s in copies] == [1.0, 4.0]
    copies[1].scheduler.points = [(0, 2.0)]
    assert copies[1].value_at(8) == 2.0


def test_norm_warmup_keeps_an_edit_of_the_inner_schedule_on_resume():
    def make(points):
        return gqc.NormWarmupScheduler(gqc.PiecewiseSchedule(wrapper(), points), 4, 5.0)

    first, second = make([(0, 2.0)]), make([(0, 2.0)])
    run(first, 6)
    first.scheduler.points = [(0, 2.0), (8, 1.0)]
    second.load_state_dict(first.state_dict())
    assert second.scheduler.points == [(0, 2.0), (8, 1.0)]
    assert run(second, 9) == run(first, 9)
    for wrong in ({"key": "lr"}, {"scheduler": {**first.scheduler.state_dict(), "points": []}}):
        with pytest.raises(ValueError, match=r"given to one of|expected at least one"):
            second.load_state_dict({**first.state_dict(), "last_step": 1, **wrong})
        assert second.state_dict() == first.state_dict()


def test_numpy_numbers_are_numbers():
    schedule = gqc.get_norm_threshold_cosine_annealing_with_warmup(
        wrapper(), np.int64(2), np.int32(8), np.float32(2.0)
    )
    assert run(schedule, 2)[-1] == [2.0]
    assert all(type(value) in (int, str) for value in schedule.state_dict().values())


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_state_of_version_010_loads_exactly_and_continues(name, cut):
    saved = torch.load(FILE, weights_only=True)[f"{name}-{cut}"]
    schedule = SCHEDULES[name]()
    schedule.load_state_dict(saved["state"])
    state = schedule.state_dict()
    assert {key: state[key] for key in saved["state"]} == saved["state"]
    uncut = edited(name)
    run(uncut, cut)
    assert run(schedule, MORE) == saved["end"] == run(uncut, MORE)


def drawn(points, steps: int):
    opt = wrapper(max_draws=None)
    schedule = gqc.PiecewiseSchedule(opt, points)
    params = opt.param_groups[0]["params"]
    draw(opt, params, steps, schedule.step)
    return opt, params, schedule


def draw(opt, params, num: int, each=lambda: None) -> None:
    for grads in stream(num):
        backward(params, grads)
        opt.step()
        each()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_schedule_that_was_not_loaded_is_seen_on_a_plateau_too(when):
    points = [(0, 1.0), (100, 1.0), (200, 0.5)]
    first, _, schedule = drawn(points, 50)
    opt, params, other = drawn(points, 0)
    opt.load_state_dict(first.state_dict())
    if when == "after":
        other = gqc.PiecewiseSchedule(opt, points)
    draw(opt, params, 1)
    with pytest.raises(RuntimeError, match="at step 0 with 1 and goes another way: load both"):
        other.step()
    other.load_state_dict(schedule.state_dict())
    draw(opt, params, 20, other.step)
    assert other.last_step == 70


def test_a_live_schedule_is_rolled_back_with_its_wrapper_on_a_plateau_too():
    opt, params, schedule = drawn([(0, 1.0), (100, 1.0), (200, 0.5)], 20)
    states = copy.deepcopy((opt.state_dict(), schedule.state_dict()))
    draw(opt, params, 20, schedule.step)
    opt.load_state_dict(states[0])
    draw(opt, params, 1)
    with pytest.raises(RuntimeError, match="at step 40 with 1 and goes another way"):
        schedule.step()
    schedule.load_state_dict(states[1])  # before or after the wrapper
    opt.load_state_dict(states[0])
    draw(opt, params, 5, schedule.step)
    assert schedule.last_step == 25
    opt.optimizer.load_state_dict(opt.optimizer.state_dict())  # the counters are the wrapper's
    draw(opt, params, 5, schedule.step)
    assert schedule.last_step == 30


def test_a_schedule_that_stays_or_ends_needs_no_loading():
    first = drawn([(0, 1.0)], 50)[0]
    for make in (
        lambda opt: gqc.get_constant_schedule(opt, 1.0, key=THRESHOLD),
        lambda opt: gqc.ParamGroupSchedule(opt, THRESHOLD, ([1.0] * 60).__getitem__),
    ):
        opt, params, _ = drawn([(0, 1.0)], 0)
        schedule = make(opt)
        opt.load_state_dict(first.state_dict())
        draw(opt, params, 5, schedule.step)
        assert schedule.get_last_value() == [1.0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_is_told_of_its_wrappers_loading(copied):
    points = [(0, 2.0), (200, 1.0)]
    first = drawn(points, 50)[0]
    opt, params, schedule = copied(drawn(points, 0))
    opt.load_state_dict(first.state_dict())
    draw(opt, params, 1)
    with pytest.raises(
        RuntimeError, match=r"with gradient_norm_threshold=1\.75, but not its sched"
    ):
        schedule.step()


def test_a_state_of_another_key_changes_nothing():
    schedule = gqc.PiecewiseSchedule(wrapper(), [(0, 5.0)])
    state = {"key": "lr", "last_step": 3, "points": [[0, 1.0]]}
    with pytest.raises(ValueError, match="'lr' given to one of 'gradient_norm_threshold'"):
        schedule.load_state_dict(state)
    assert (schedule.points, schedule.last_step) == ([(0.0, 5.0)], 0)


def test_a_tensor_is_filled_in_place_as_torchs_schedulers_do():
    """Capturable and compiled optimizers hold their lr so, and would not see another object."""
    lr = torch.tensor(0.1)
    optimizer = torch.optim.AdamW(parameters(), lr=lr)
    schedule = gqc.get_linear_schedule(optimizer, 0.5, 0.25, 1, key="lr")
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert schedule.get_last_value() == [lr.item()] == [0.25]


def test_a_threshold_that_starts_at_zero_is_a_mistake_and_names_the_inverted_builder():
    with pytest.warns(UserWarning, match="get_norm_threshold_cosine_annealing_with_warmup"):
        gqc.get_direct_cosine_annealing_with_warmup(wrapper(), 1.0, 4, 10, key=THRESHOLD)


def test_stands_beside_torchs_own_scheduler():
    opt = wrapper()
    lr = torch.optim.lr_scheduler.LinearLR(opt, start_factor=0.5, total_iters=2)
    norm = gqc.get_linear_schedule(opt, 4.0, 0.0, 4, key=THRESHOLD)
    for grads in stream(3):
        backward(opt.param_groups[0]["params"], grads)
        opt.step()
        lr.step()
        norm.step()
    assert opt.param_groups[0]["lr"] == pytest.approx(0.1)
    assert opt.param_groups[0][THRESHOLD] == 1.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda o: gqc.get_norm_threshold_cosine_annealing_with_warmup(o, 11, 10), "num_warmup_st"),
        (lambda o: gqc.get_norm_threshold_cosine_annealing_with_warmup(o, -1, 10), "=-1"),
        (lambda o: gqc.get_norm_threshold_cosine_annealing_with_warmup(o, 1, 0), "steps=0"),
        (lambda o: gqc.get_norm_threshold_cosine_annealing_with_warmup(o, 1, 9, math.nan), "nan"),
        (lambda o: gqc.get_norm_threshold_cosine_annealing_with_warmup(o, 1, 9, 1, -0.1), "end_n"),
        (lambda o: gqc.get_curved_batch_schedule(o, 0, 8, 10), "initial_batch_size=0"),
        (lambda o: gqc.get_curved_batch_schedule(o, 1, 8, 10, 0.0), "polynomial_exponent=0.0"),
        (lambda o: gqc.get_linear_schedule(o, 1, 0, 0, key=THRESHOLD), "num_training_steps=0"),
        (lambda o: gqc.ParamGroupSchedule(o, THRESHOLD, lambda t: math.inf), "inf at step 0"),
    ],
)
def test_bad_arguments_name_the_argument_and_its_value(build, message):
    opt = wrapper()
    with pytest.raises(ValueError, match=message):
        build(opt)
    assert opt.param_groups[0][THRESHOLD] == 1.0


def test_an_unknown_key_lists_the_known_ones_and_a_non_optimizer_is_refused():
    with pytest.raises(KeyError, match="gradient_norm_threshold"):
        gqc.get_constant_schedule(wrapper(), 1.0, key="threshold")
    with pytest.raises(TypeError, match="expected an Optimizer"):
        gqc.ParamGroupSchedule(object(), "lr", lambda t: 1.0)
    with pytest.raises(TypeError, match="fn=5: expected a function of the step"):
        gqc.ParamGroupSchedule(wrapper(), "lr", 5)
    for bad in (None, "a", math.nan):
        with pytest.raises(ValueError, match=f"'lr' is {bad} at step 0: expected finite"):
            gqc.ParamGroupSchedule(wrapper(), "lr", lambda t, bad=bad: bad)
