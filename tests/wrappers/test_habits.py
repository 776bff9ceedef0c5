"""What people do in their loops: the right mean reaches the optimizer, or an error names the habit.

Each with both places of the sum; parameters move by minus the mean gradient (SGD, lr 1).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from typing import Unpack, get_origin

import pytest
import torch
from cases import CASES
from problems import backward, parameters, stream
from torch.nn import functional as F
from torch.optim import SGD
from wrappers.habits import Broken

import gqc

both_windows = pytest.mark.parametrize("accumulate", ["grad", "buffer"])
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def scalar(value: float = 0.0):
    return torch.tensor([value], requires_grad=True)


def sbc(params, num_draws: float, **options):
    return gqc.OptimizerWrapperSBC(SGD(params, lr=1.0), 1, num_draws, **options)


def draw(wrapper, param, grad: float, **given) -> bool:
    (param * grad).sum().backward()
    return wrapper.step(**given)


CHANGES = {
    "clip_grad_norm_": lambda p: torch.nn.utils.clip_grad_norm_([p], 1.0),
    "clip_grad_norm_, not foreach": lambda p: torch.nn.utils.clip_grad_norm_(
        [p], 1.0, foreach=False
    ),
    "clip_grad_value_": lambda p: torch.nn.utils.clip_grad_value_([p], 1.0),
    "in place": lambda p: p.grad.clamp_(max=1.0),
}


@both_windows
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_clipping_each_draw_is_right_in_a_buffer_and_refused_in_a_sum(change, accumulate):
    x = scalar()
    wrapper = sbc([x], 4, accumulate=accumulate)
    for _ in range(4):
        (10 * x).sum().backward()
        change(x)
        if accumulate == "grad":
            with pytest.raises(RuntimeError, match="clip_norm="):
                wrapper.step()
            return
        wrapper.step()
    assert x.item() == pytest.approx(-1.0, rel=1e-5)  # the mean of the clipped draws


def test_a_wrapper_that_decides_by_norms_says_once_that_they_are_of_clipped_draws():
    x = scalar()
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x], lr=1.0), 0.5, max_draws=4)
    (10 * x).sum().backward()
    torch.nn.utils.clip_grad_norm_([x], 1.0)
    with pytest.warns(UserWarning, match="OptimizerWrapperGNTS decides by the norms.*clip_norm="):
        assert wrapper.step() is False
    for _ in range(3):
        (10 * x).sum().backward()
        torch.nn.utils.clip_grad_norm_([x], 1.0)
        wrapper.step()
    assert x.item() == pytest.approx(-1.0, rel=1e-5)


@both_windows
def test_clip_norm_clips_the_mean_after_the_decision_has_read_its_norm(accumulate):
    x = scalar()
    wrapper = gqc.OptimizerWrapperGNTS(
        SGD([x], lr=1.0), 0.5, max_draws=4, clip_norm=1.0, accumulate=accumulate
    )
    assert [draw(wrapper, x, 10.0) for _ in range(8)] == [False, False, False, True] * 2
    assert x.item() == pytest.approx(-2.0, rel=1e-6)
    assert (wrapper.last_window.grad_norm, wrapper.last_window.is_clipped) == (10.0, True)
    assert wrapper.statistics()["num_clipped"] == 2
    assert draw(wrapper, x, 0.25) is True
    assert wrapper.last_window.is_clipped is False
    assert wrapper.statistics()["num_clipped"] == 2


@every_case
@both_windows
def test_clip_norm_bounds_what_every_wrapper_hands_on_and_changes_no_decision(case, accumulate):
    runs = []
    for options in ({}, {"clip_norm": 2.0}):
        params, seen, stepped = parameters(), [], []
        optimizer = SGD(params, lr=0.0)
        optimizer.register_step_pre_hook(
            lambda *_, seen=seen, params=params: seen.append(
                torch.cat([p.grad.flatten() for p in params])
            )
        )
        if not case.make(SGD(parameters())).needs_draw_norm:
            options = {**options, "accumulate": accumulate}
        wrapper = case.make(optimizer, **options)
        for i, grads in enumerate(stream(30)):
            backward(params, grads)
            stepped.append(wrapper.step(metric=1.0 + i % 3))
        runs.append((stepped, seen))
    (stepped, raw), (same, clipped) = runs
    assert same == stepped
    for mean, handed in zip(raw, clipped, strict=True):
        expected = mean * min(1.0, 2.0 / float(mean.norm()))
        torch.testing.assert_close(handed, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_clip_norm_clips_gradients_whose_squares_are_no_numbers(size):
    x = torch.zeros(4, requires_grad=True)
    optimizer = SGD([x], lr=1.0)
    wrapper = gqc.OptimizerWrapperSBC(optimizer, 1, 1, clip_norm=size / 8)
    (x * size).sum().backward()
    wrapper.step()
    torch.testing.assert_close(x.detach() / size, torch.full((4,), -1 / 16 if size > 1 else -1.0))


@both_windows
def test_several_backwards_may_make_one_draw(accumulate):
    x = scalar()
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x], lr=1.0), 1e9, min_draws=2, accumulate=accumulate)
    for _ in range(2):
        (x * 2).sum().backward()
        (x * 3).sum().backward()
        wrapper.step()
    assert x.item() == -5.0


@both_windows
def test_a_hook_that_changes_gradients_after_each_backward_is_refused_in_a_sum(accumulate):
    x = scalar()
    wrapper = sbc([x], 2, accumulate=accumulate)

    def decay(param):
        param.grad.mul_(0.5)

    x.register_post_accumulate_grad_hook(decay)
    if accumulate == "grad":
        with pytest.raises(RuntimeError, match=r'hooks of others.*accumulate="buffer"'):
            draw(wrapper, x, 4.0)
        return
    draw(wrapper, x, 4.0), draw(wrapper, x, 4.0)
    assert x.item() == -2.0


@pytest.mark.parametrize("mode", ["global", "independent"])
def test_a_rescaled_16_bit_gradient_is_rounded_once(mode):
    grad = torch.randn(400, generator=torch.Generator().manual_seed(0)).bfloat16()
    for target in (0.37, 1.73, 2.91):
        x, seen = torch.zeros(400, dtype=torch.bfloat16, requires_grad=True), []
        optimizer = SGD([x], lr=1.0)
        optimizer.register_step_pre_hook(lambda *_, x=x, seen=seen: seen.append(x.grad.clone()))
        draw(gqc.OptimizerWrapperGNR(optimizer, target, mode), x, grad)
        factor = target / float(grad.float().norm())
        assert torch.equal(seen[0], (grad.float() * factor).bfloat16())


@both_windows
def test_the_watch_goes_with_parameters_that_to_swaps(accumulate):
    layer = torch.nn.Linear(1, 1, bias=False)
    wrapper = sbc(layer.parameters(), 3, accumulate=accumulate)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    x, start = layer.weight, layer.weight.item()
    draw(wrapper, x, 1.0)
    (2 * x).sum().backward()
    x.grad.mul_(0.5)
    if accumulate == "grad":
        with pytest.raises(RuntimeError, match="changed in place"):
            wrapper.step()
        return
    wrapper.step()
    with contextlib.suppress(MemoryError):
        (Broken.apply(scalar(), MemoryError()) + 100 * x).sum().backward()
    with pytest.raises(RuntimeError, match="ended with an error"):
        wrapper.step()
    x.grad = None
    draw(wrapper, x, 4.0)
    assert x.item() == start - 2.0


@both_windows
def test_a_window_whose_parameters_went_can_be_discarded(accumulate):
    x, y = scalar(), scalar()
    optimizer = SGD([{"params": [x]}, {"params": [y]}], lr=1.0)
    wrapper = gqc.OptimizerWrapperSBC(optimizer, 1, 2, accumulate=accumulate)
    draw(wrapper, x + y, 1.0)
    del wrapper.param_groups[1]
    with pytest.raises(RuntimeError, match=r"removed or replaced.*discard\(\)"):
        wrapper.flush()
    wrapper.discard()
    draw(wrapper, x + y, 2.0), draw(wrapper, x + y, 4.0)
    assert (x.item(), y.item()) == (-3.0, 0.0)


def test_what_an_optimizer_returns_says_nothing_of_its_step():
    class Silent(SGD):
        def step(self, closure=None):
            super().step(closure)
            return False

    x = scalar()
    wrapper = gqc.OptimizerWrapperSBC(Silent([x], lr=1.0), 1, 1)
    assert draw(wrapper, x, 1.0)
    assert wrapper.statistics()["steps"] == 1


def test_the_hooks_go_with_the_wrapper():
    x = scalar()
    for _ in range(3):
        wrapper = gqc.OptimizerWrapperGNTS(SGD([x], lr=1.0))
    assert len(x._post_accumulate_grad_hooks) == 1
    del wrapper
    assert not x._post_accumulate_grad_hooks


@both_windows
def test_a_parameter_that_thaws_is_watched_too(accumulate):
    x, y = scalar(), scalar()
    y.requires_grad_(False)
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x, y], lr=1.0), 1e9, accumulate=accumulate)
    assert not y.requires_grad
    draw(wrapper, x, 1.0)
    x.requires_grad_(False)
    y.requires_grad_()
    assert draw(wrapper, y, 1.0) is True
    assert y.item() == -1.0


# Unequal microbatches


def regression(num: int):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num, 4, generator=generator), torch.randn(num, generator=generator)


def split_run(wrapper, w, sizes, reduction: str, weighted: bool = True):
    inputs, targets = regression(sum(sizes))
    for x, y in zip(inputs.split(sizes), targets.split(sizes), strict=True):
        F.mse_loss(x @ w, y, reduction=reduction).backward()
        given = {"weight": len(y)} if weighted else {}
        wrapper.step(**given)


def full_batch_gradient(num: int):
    w = torch.zeros(4, requires_grad=True)
    x, y = regression(num)
    F.mse_loss(x @ w, y).backward()
    return w.grad


@both_windows
@pytest.mark.parametrize("sizes", [[7, 1], [1, 7], [4, 4], [3, 5, 2, 7]])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weighted_draws_give_the_gradient_of_the_whole_batch(sizes, reduction, accumulate):
    w = torch.zeros(4, requires_grad=True)
    wrapper = gqc.OptimizerWrapperReplay(
        SGD([w], lr=1.0), [len(sizes)], loss=reduction, accumulate=accumulate
    )
    if accumulate == "grad" and reduction == "mean" and len(set(sizes)) > 1:
        with pytest.raises(ValueError, match='accumulate="buffer", or loss="sum"'):
            split_run(wrapper, w, sizes, reduction)
        return
    split_run(wrapper, w, sizes, reduction)
    torch.testing.assert_close(-w.detach(), full_batch_gradient(sum(sizes)), rtol=1e-5, atol=1e-6)
    assert wrapper.last_window.weight == sum(sizes)


@both_windows
def test_sbc_counts_weights_in_place_of_its_physical_batch(accumulate):
    w = torch.zeros(4, requires_grad=True)
    wrapper = gqc.OptimizerWrapperSBC(SGD([w], lr=1.0), 4, 12, loss="sum", accumulate=accumulate)
    inputs, targets = regression(12)
    got = []
    for start, stop, given in ((0, 4, {}), (4, 5, {"weight": 1}), (5, 12, {"weight": 7})):
        F.mse_loss(inputs[start:stop] @ w, targets[start:stop], reduction="sum").backward()
        got.append(wrapper.step(**given))
    assert got == [False, False, True]
    torch.testing.assert_close(-w.detach(), full_batch_gradient(12), rtol=1e-5, atol=1e-6)


def test_a_parameter_without_a_gradient_in_a_draw_of_another_weight():
    x, y = scalar(), scalar()
    wrapper = gqc.OptimizerWrapperReplay(SGD([x, y], lr=1.0), [3])
    for weight, loss in ((1, 4 * x + 2 * y), (3, 8 * x), (4, x + y)):
        loss.sum().backward()
        wrapper.step(weight=weight)
    assert x.item() == pytest.approx(-(4 + 24 + 4) / 8)
    assert y.item() == pytest.approx(-(2 + 4) / 8)


@every_case
def test_a_cut_between_weighted_draws_is_bitwise_the_uncut(case):
    def run(cut: int | None):
        params = parameters()
        wrapper = case.make(SGD(params, lr=0.1))
        for i, grads in enumerate(stream(24)):
            if i == cut:
                state = copy.deepcopy(wrapper.state_dict())
                wrapper = case.make(SGD(params, lr=0.1))
                wrapper.load_state_dict(state)
            backward(params, grads)
            wrapper.step(weight=1 + i % 4, metric=1.0 + i % 3)
        return params, wrapper.statistics(), wrapper.last_window

    whole, statistics, last = run(None)
    for cut in (9, 10, 11):
        params, again, closed = run(cut)
        assert all(torch.equal(a, b) for a, b in zip(params, whole, strict=True))
        assert (again, closed) == (statistics, last)


@pytest.mark.parametrize("kind", [gqc.OptimizerWrapperGNS, gqc.OptimizerWrapperNormTest])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_noise_scale_of_unequal_draws_is_that_of_one_unit(kind, reduction):
    """Microbatches of 64 and 1024 tokens by turns, R = 2560 tokens (10 of 256)."""
    dimension, scale = 400, 2560.0
    x = torch.zeros(dimension, requires_grad=True)
    signal = torch.ones(dimension) / dimension**0.5
    generator = torch.Generator().manual_seed(0)
    wrapper = kind(SGD([x], lr=0.0), 1e-12, max_draws=8, decay=0.995, loss=reduction)
    for i in range(8 * 500):
        tokens = (64, 1024)[i % 2]
        noise = torch.randn(dimension, generator=generator) * (scale / dimension / tokens) ** 0.5
        x.backward((signal + noise) * (tokens if reduction == "sum" else 1))
        wrapper.step(weight=tokens)
    # standard error of the average of some 400 windows: 0.4 of one window's 0.3, over sqrt(400)
    assert wrapper.statistics()["noise_scale"] == pytest.approx(scale, rel=0.05)


def test_gnts_estimates_in_units_of_weight_too():
    dimension, scale = 400, 40.0
    x = torch.zeros(dimension, requires_grad=True)
    signal = torch.ones(dimension) / dimension**0.5
    generator = torch.Generator().manual_seed(0)
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x], lr=0.0), 1e30, min_draws=1, max_draws=4)
    wrapper.param_groups[0]["gradient_norm_threshold"] = 0.0
    for i in range(4 * 400):
        weight = (4, 12)[i % 2]
        noise = torch.randn(dimension, generator=generator) * (scale / dimension / weight) ** 0.5
        x.backward(signal + noise)
        wrapper.step(weight=weight)
    assert wrapper.statistics()["noise_scale"] == pytest.approx(scale, rel=0.15)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_a_weight_out_of_its_range_is_refused_before_anything_changes(weight, loss):
    x = scalar()
    wrapper = gqc.OptimizerWrapperReplay(SGD([x], lr=1.0), [2], loss=loss)
    (x * 1).sum().backward()
    with pytest.raises(ValueError, match=r"weight=.*expected a finite number > 0"):
        wrapper.step(weight=weight)
    assert wrapper.num_draws == 0
    assert wrapper.step(weight=torch.tensor(2)) is False  # the gradient is still there


@both_windows
@pytest.mark.parametrize(("first", "second"), [(None, 1), (5, None)])
def test_draws_with_and_without_weights_do_not_mix_where_nothing_says_how(
    first, second, accumulate
):
    x = scalar()
    wrapper = gqc.OptimizerWrapperReplay(SGD([x], lr=1.0), [2], accumulate=accumulate)
    draw(wrapper, x, 1.0, weight=first)
    with pytest.raises(ValueError, match="nothing says how they compare"):
        draw(wrapper, x, 3.0, weight=second)
    assert wrapper.num_draws == 1
    wrapper.discard()
    assert [draw(wrapper, x, g, weight=second) for g in (1.0, 3.0)] == [False, True]
    assert x.item() == -2.0


def test_a_summed_loss_needs_its_number_of_tokens():
    x = scalar()
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x], lr=1.0), loss="sum")
    x.sum().backward()
    with pytest.raises(ValueError, match=r"step\(weight=\.\.\.\)"):
        wrapper.step()
    inner = gqc.OptimizerWrapperSBC(SGD([scalar()], lr=1.0), 1, 2, loss="sum")
    with pytest.raises(ValueError, match="loss='sum' of a wrapper inside another"):
        gqc.OptimizerWrapperGNTS(inner)


def test_weights_and_metrics_reach_a_wrapper_inside_as_those_of_its_draw():
    x = scalar()
    inner = gqc.OptimizerWrapperSBC(SGD([x], lr=1.0), 1, 10)
    outer = gqc.OptimizerWrapperReplay(inner, [2], repeat_last=True)
    got = [draw(outer, x, g, weight=w) for g, w in ((1, 1), (2, 3), (3, 4), (4, 2))]
    assert got == [False, False, False, True]
    assert x.item() == pytest.approx(-(1 + 6 + 12 + 8) / 10)
    watched = gqc.OptimizerWrapperMHT(SGD([x], lr=1.0), max_draws=None)
    outer = gqc.OptimizerWrapperReplay(watched, [2], repeat_last=True)
    draw(outer, x, 1, weight=1, metric=1.0), draw(outer, x, 1, weight=3, metric=2.0)
    assert watched._metrics == [1.75]


# Clearing, skipping, forgetting


@both_windows
def test_the_loop_of_a_gan_steps_with_its_own_gradients(accumulate):
    """The generator's loss reaches the discriminator too, which is cleared before its own."""
    d, g = scalar(1.0), scalar(1.0)
    wrapper = gqc.OptimizerWrapperSBC(SGD([d], lr=1.0), 1, 2, accumulate=accumulate)
    for number in range(2):
        if accumulate == "grad" and number == 1:
            with pytest.raises(RuntimeError, match=r"zero_grad\(\) after a backward\(\)"):
                wrapper.zero_grad()
            return
        wrapper.zero_grad()
        (3 * d).sum().backward()
        wrapper.step()
        (100 * d * g).sum().backward()
    assert d.item() == 1.0 - 3.0


@both_windows
@pytest.mark.parametrize("at", [0, 1])
def test_zero_grad_skips_a_bad_batch(at, accumulate):
    x = scalar()
    wrapper = sbc([x], 2, accumulate=accumulate)
    for number in range(2):
        if number == at:
            (1e6 * x).sum().backward()
            if accumulate == "grad" and at == 1:
                with pytest.raises(RuntimeError, match='accumulate="buffer"'):
                    wrapper.zero_grad()
                return
            wrapper.zero_grad()
        draw(wrapper, x, 1.0)
    assert x.item() == -1.0


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_of_a_buffer_leaves_no_draw_of_zeros(set_to_none):
    x = scalar()
    wrapper = sbc([x], 2)
    draw(wrapper, x, 1.0)
    (x * 5).sum().backward()
    wrapper.zero_grad(set_to_none=set_to_none)
    with pytest.raises(RuntimeError, match=r"loss\.backward\(\)"):
        wrapper.step()


@both_windows
@pytest.mark.parametrize("pending", [0, 1, 2])
def test_a_step_without_a_backward_is_refused(pending, accumulate):
    x = scalar()
    wrapper = sbc([x], 3, accumulate=accumulate)
    for _ in range(pending):
        draw(wrapper, x, 1.0)
    with pytest.raises(RuntimeError, match=r"loss\.backward\(\)"):
        wrapper.step()
    assert wrapper.num_draws == pending
    assert wrapper.statistics()["batches"] == pending + 1
    for _ in range(3 - pending):
        draw(wrapper, x, 1.0)
    assert x.item() == -1.0


REFUSED = {  # kind, then a step() that is refused and the one that was meant
    "weight": (sbc, {"weight": -1}, {"weight": 1}),
    "closure": (
        lambda params, n, **kw: gqc.OptimizerWrapperMHT(
            SGD(params, lr=1.0), min_draws=n, max_draws=n, **kw
        ),
        {"closure": 0.5},
        {"metric": 0.5},
    ),
}


@both_windows
@pytest.mark.parametrize("pending", [0, 1])
@pytest.mark.parametrize("again", ["cell", "step", "cleared"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_cell_that_runs_again_after_a_refused_step_draws_its_gradient_once(
    kind, again, pending, accumulate
):
    x = scalar()
    make, wrong, right = REFUSED[kind]
    wrapper = make([x], 2, accumulate=accumulate)
    for _ in range(pending):
        draw(wrapper, x, 3.0, **right)
    x.sum().backward()
    with pytest.raises((ValueError, TypeError)):
        wrapper.step(**wrong)
    if again == "cleared":
        if accumulate == "grad" and pending:
            with pytest.raises(RuntimeError, match=r"discard\(\) drops the window"):
                wrapper.zero_grad()
            return
        wrapper.zero_grad(set_to_none=False)
    if again != "step":
        x.sum().backward()
    if again == "cell":
        with pytest.raises(RuntimeError, match=r"another backward\(\) has added to it.*zero_grad"):
            wrapper.step(**right)
        wrapper.discard()
        pending = 0
        x.sum().backward()
    wrapper.step(**right)
    for _ in range(1 - pending):
        draw(wrapper, x, 3.0, **right)
    assert x.item() == -2.0


@both_windows
def test_a_sum_takes_only_the_gradients_of_a_backward(accumulate):
    x = scalar()
    wrapper = sbc([x], 1, accumulate=accumulate)
    x.grad = torch.ones(1)
    if accumulate == "grad":
        with pytest.raises(RuntimeError, match='made by hand need accumulate="buffer"'):
            wrapper.step()
        return
    assert wrapper.step() is True
    assert x.item() == -1.0


@both_windows
def test_flush_refuses_a_microbatch_that_was_not_drawn(accumulate):
    x = scalar()
    wrapper = sbc([x], 3, accumulate=accumulate)
    draw(wrapper, x, 1.0)
    (x * 5).sum().backward()
    with pytest.raises(RuntimeError, match=r"backward\(\)"):
        wrapper.flush()
    if accumulate == "grad":
        with pytest.raises(RuntimeError, match=r"backward\(\)"):
            wrapper.state_dict()
        return
    wrapper.zero_grad()
    assert wrapper.flush() is True
    assert x.item() == -1.0


# Signatures


@every_case
def test_every_signature_is_spelled_out_and_a_misspelt_option_is_refused(case):
    kind = type(case.make(SGD(parameters())))
    parameters_of = inspect.signature(kind).parameters
    assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters_of.values())
    declared = inspect.signature(kind.__init__).parameters.values()
    for rest in (p for p in declared if p.kind is inspect.Parameter.VAR_KEYWORD):
        assert get_origin(rest.annotation) is Unpack  # type checkers see a misspelt one
    options = inspect.signature(gqc.OptimizerWrapper.__init__).parameters
    assert set(options) - {"self", "tunables"} <= set(parameters_of)
    for wrong, near in (("max_draw", "max_draws"), ("max_batch_draws", "max_draws")):
        with pytest.raises(TypeError, match=f"no argument '{wrong}': did you mean '{near}'"):
            case.make(SGD(parameters()), **{wrong: 4})
    with pytest.raises(TypeError, match="names and argument order of torch-gqc"):
        kind(SGD(parameters()), distributed_mode="replicated")


def test_vgs_takes_what_its_scaler_takes():
    known = inspect.signature(gqc.OptimizerWrapperVGS).parameters
    scaler = inspect.signature(gqc.VarianceGradientScaler).parameters
    assert set(scaler) - {"parameters"} <= set(known)


def test_published_calls_are_clear_errors():
    x = scalar()
    with pytest.raises(TypeError, match=r"'logical_batch_size'.*names and argument order"):
        gqc.OptimizerWrapperSBC(SGD([x]), 32)
    wrapper = gqc.OptimizerWrapperMHT(SGD([x], lr=1.0))
    x.sum().backward()
    with pytest.raises(TypeError, match=r"step\(metric=loss\)"):
        wrapper.step(0.25)
    assert wrapper.num_draws == 0


@both_windows
def test_a_metric_may_be_the_loss_itself(accumulate):
    x = scalar(1.0)
    wrapper = gqc.OptimizerWrapperMHT(SGD([x], lr=0.1), accumulate=accumulate)
    for _ in range(2):
        loss = (x * x).sum()
        loss.backward()
        wrapper.step(metric=loss)
    assert wrapper.running_mean == 1.0


def test_integers_of_numpy_count_as_integers_and_fractions_do_not():
    numpy = pytest.importorskip("numpy")
    x = scalar()
    options = {"min_draws": numpy.int64(1), "max_draws": numpy.int32(2)}
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x], lr=1.0), 1e-9, **options)
    assert [draw(wrapper, x, 1.0) for _ in range(2)] == [False, True]
    gqc.OptimizerWrapperSBC(SGD([scalar()]), numpy.int64(4), 8)
    assert gqc.OptimizerWrapperReplay(SGD([scalar()]), numpy.array([1, 2])).draws == [1, 2]
    with pytest.raises(TypeError, match="integer"):
        gqc.OptimizerWrapperReplay(SGD([scalar()]), [1.5])


# Compiled, 16 bits


# torch's compiler looks at the .grad of the loss that is passed on.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.slow
@every_case
@both_windows
def test_a_compiled_train_step_steps(case, accumulate):
    options = {} if case.make(SGD(parameters())).needs_draw_norm else {"accumulate": accumulate}
    runs = []
    for compiled in (False, True):
        torch._dynamo.reset()
        params = parameters()
        wrapper = case.make(SGD(params, lr=0.01), **options)

        def train(scale, params=params, wrapper=wrapper):
            loss = sum((p * scale).square().sum() for p in params)
            loss.backward()
            return wrapper.step(metric=loss)

        step = torch.compile(train, backend="eager") if compiled else train
        runs.append(([step(1.0 + 0.1 * (i % 3)) for i in range(12)], params))
    (eager, expected), (decisions, params) = runs
    assert decisions == eager
    assert any(decisions)
    for a, b in zip(params, expected, strict=True):
        torch.testing.assert_close(a, b)


@both_windows
def test_a_gradient_dtype_of_its_own_is_kept(accumulate):
    """257 and 255: in bfloat16 the first is 256."""
    saved = None
    for grad in (257.0, 255.0):  # in mid-window another wrapper goes on
        x = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
        x.grad_dtype = torch.float32
        wrapper = sbc([x], 2, accumulate=accumulate)
        if saved is not None:
            wrapper.load_state_dict(saved)
        (x.float() * grad).sum().backward()
        wrapper.step()
        saved = wrapper.state_dict()
    assert torch.equal(x.detach(), torch.full((3,), -256.0, dtype=torch.bfloat16))


@both_windows
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("at", [0, 3])  # before the first draw, and in mid-window
def test_a_model_that_changes_its_dtype_is_summed_exactly_or_refused(at, dtype, accumulate):
    """512 ones: in bfloat16 their sum stops at 256."""
    num_draws = 512
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    wrapper = sbc(model.parameters(), num_draws, accumulate=accumulate)
    for i in range(num_draws):
        if i == at:
            model.to(dtype)
        model(torch.ones(1, 1, dtype=model.weight.dtype)).sum().backward()
        is_noticed = i == (1 if at == 0 else num_draws - 1)  # at the latest when it would step
        if accumulate == "grad" and dtype != torch.float64 and is_noticed:
            with pytest.raises(RuntimeError, match=r'16.*of parameter 0.*accumulate="buffer"'):
                wrapper.step()
            return
        wrapper.step()
    assert model.weight.item() == -1.0


def test_a_refused_draw_leaves_no_weight_behind():
    x = scalar()
    wrapper = gqc.OptimizerWrapperReplay(SGD([x], lr=1.0), [2])
    with pytest.warns(UserWarning, match="NaN"):
        draw(wrapper, x, math.nan, weight=3)
    assert [draw(wrapper, x, 1.0), draw(wrapper, x, 1.0)] == [False, True]
    assert x.item() == -1.0


def test_windows_of_one_16_bit_draw_need_no_sum():
    x = torch.zeros(1, dtype=torch.bfloat16, requires_grad=True)
    wrapper = sbc([x], 1, accumulate="grad")
    assert [draw(wrapper, x, 1.0) for _ in range(3)] == [True] * 3
    assert x.item() == -3.0


# Copies, groups, hooks


@both_windows
def test_a_shallow_copy_shares_parameters_and_is_refused_in_mid_window(accumulate):
    x = scalar()
    wrapper = sbc([x], 2, accumulate=accumulate)
    assert copy.copy(wrapper).param_groups is wrapper.param_groups
    draw(wrapper, x, 1.0)
    with pytest.raises(RuntimeError, match=r"copy\.deepcopy"):
        copy.copy(wrapper)
    draw(wrapper, x, 3.0)
    assert x.item() == -2.0


@both_windows
@pytest.mark.parametrize("change", ["removed", "replaced", "inserted"])
def test_parameters_that_change_in_mid_window_are_refused(change, accumulate):
    x, y, z = scalar(), scalar(), scalar()
    wrapper = sbc([x, y], 2, accumulate=accumulate)
    (x + 10 * y).sum().backward()
    wrapper.step()
    params = wrapper.param_groups[0]["params"]
    if change == "removed":
        del params[0]
    elif change == "replaced":
        params[0] = z
    else:
        params.insert(0, z)
    (x + 10 * y + z).sum().backward()
    for call in (wrapper.step, wrapper.flush):
        with pytest.raises(RuntimeError, match="removed or replaced while draws wait"):
            call()
    wrapper.discard()
    assert (x.item(), y.item(), wrapper.num_draws) == (0.0, 0.0, 0)
    assert not any(p.grad is not None for p in wrapper.param_groups[0]["params"])


@both_windows
def test_hooks_get_the_arguments_that_torch_gives_them(accumulate):
    x, seen = scalar(), []
    wrapper = sbc([x], 1, accumulate=accumulate)

    def pre(optimizer, args, kwargs):
        seen.append((args, sorted(kwargs)))
        return args, {**kwargs, "weight": 3}

    wrapper.register_step_pre_hook(pre)
    wrapper.register_step_post_hook(lambda optimizer, args, kwargs: seen.append((args, kwargs)))
    draw(wrapper, x, 1.0, metric=2.0)
    assert seen == [((wrapper,), ["metric"]), ((wrapper,), {"metric": 2.0, "weight": 3})]
    assert wrapper.last_window.weight == 3


def test_groups_may_bring_thresholds_of_their_own():
    x, y = scalar(), scalar()
    groups = [{"params": [x]}, {"params": [y], "gradient_norm_threshold": 2.0}]
    wrapper = gqc.OptimizerWrapperGNTS(SGD(groups, lr=1.0), 5.0)
    values = [group["gradient_norm_threshold"] for group in wrapper.param_groups]
    assert values == [5.0, 2.0]
    bad = [{"params": [x]}, {"params": [y], "gradient_norm_threshold": -2.0}]
    with pytest.raises(ValueError, match=r"param_groups\[1\]\['gradient_norm_threshold'\]=-2.0"):
        gqc.OptimizerWrapperGNTS(SGD(bad, lr=1.0), 5.0)
    with pytest.raises(ValueError, match="already"):
        gqc.OptimizerWrapperGNTS(wrapper.optimizer, 1.0)


@both_windows
def test_a_nan_threshold_in_a_group_is_an_error_not_a_decision(accumulate):
    x, y = scalar(), scalar()
    groups = [{"params": [x]}, {"params": [y]}]
    wrapper = gqc.OptimizerWrapperGNTS(SGD(groups, lr=1.0), 5.0, accumulate=accumulate)
    wrapper.param_groups[1]["gradient_norm_threshold"] = float("nan")
    (x + y).sum().backward()
    with pytest.raises(ValueError, match="gradient_norm_threshold is NaN in one of the groups"):
        wrapper.step()


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_a_bad_number_that_is_edited_in_mid_run_does_not_turn_a_gradient_round(value):
    """A norm of -1 stepped uphill, an infinite one to infinity, and NaN clipped no more."""
    x = scalar()
    rescaler = gqc.OptimizerWrapperGNR(SGD([x], lr=1.0), 1.0)
    rescaler.target_gradient_norm = value
    clipping = gqc.OptimizerWrapperSBC(SGD([x], lr=1.0), 1, 1, clip_norm=1.0)
    clipping.clip_norm = value
    for wrapper, name in ((rescaler, "target_gradient_norm"), (clipping, "clip_norm")):
        (3 * x).sum().backward()
        if wrapper is clipping and value > 0:
            assert wrapper.step()  # an infinite bound clips nothing
        else:
            with pytest.raises(ValueError, match=name):
                wrapper.step()
            wrapper.discard()
            assert x.item() == 0.0
    norm_test = gqc.OptimizerWrapperNormTest(SGD([x], lr=1.0))
    norm_test.theta = -1.0  # which acted as 1
    with pytest.raises(ValueError, match="theta is negative in one of the groups"):
        norm_test.closes_next(), norm_test.tunable("theta")
    certain = gqc.OptimizerWrapperMHT(SGD([x], lr=1.0))
    certain.confidence = 1.0  # no interval is wide enough: it waited for max_draws
    (3 * x).sum().backward()
    assert not certain.step(metric=1.0)
    (3 * x).sum().backward()
    with pytest.raises(ValueError, match=r"confidence=1.0: expected"):
        certain.step(metric=1.0)


def test_an_optimizer_without_torchs_hooks_is_refused_before_it_is_changed():
    package = pytest.importorskip("pytorch_optimizer")
    inner = SGD([scalar()], lr=0.1)
    lookahead = package.Lookahead(inner)
    before = set(inner.param_groups[0]), set(lookahead.defaults)
    with pytest.raises(TypeError, match="Lookahead skips"):
        gqc.OptimizerWrapperGNTS(lookahead)
    assert (set(inner.param_groups[0]), set(lookahead.defaults)) == before


def test_the_modes_of_a_schedule_free_optimizer_shine_through():
    package = pytest.importorskip("pytorch_optimizer")
    x = scalar(1.0)
    wrapper = sbc([x], 1)
    assert not hasattr(wrapper, "eval")
    free = gqc.OptimizerWrapperGNTS(package.ScheduleFreeAdamW([x], lr=0.1), 1e9)
    for _ in range(3):
        draw(free, x, 1.0)
    trained = x.item()
    free.eval()
    assert x.item() != trained
    free.train()
    assert x.item() == pytest.approx(trained)


# Loops that communicate seldom, and loggers


@every_case
@both_windows
@pytest.mark.parametrize("every", [1, 2])
def test_what_closes_next_says_no_to_does_not_close(case, every, accumulate):
    options = {} if case.make(SGD(parameters())).needs_draw_norm else {"accumulate": accumulate}
    wrapper = case.make(SGD(params := parameters(), lr=0.0), decide_every=every, **options)
    answers, stepped = [], []
    for i, grads in enumerate(stream(40)):
        answers.append(wrapper.closes_next())
        backward(params, grads)
        stepped.append(wrapper.step(metric=1.0 + i % 3))
    assert all(answer for answer, step in zip(answers, stepped, strict=True) if step)
    if isinstance(wrapper, (gqc.OptimizerWrapperSBC, gqc.OptimizerWrapperReplay)) and every == 1:
        assert answers == stepped


def test_closes_next_of_gns_knows_it_from_past_windows():
    params = parameters()
    wrapper = gqc.OptimizerWrapperGNS(SGD(params, lr=0.0), 6.0, max_draws=6)
    for grads in stream(60):
        answer = wrapper.closes_next()
        backward(params, grads)
        assert wrapper.step() is answer


@both_windows
def test_decide_every_decides_at_every_kth_draw(accumulate):
    x = scalar()
    options = {"min_draws": 2, "decide_every": 3, "max_draws": 9, "accumulate": accumulate}
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x], lr=1.0), 1.0, **options)
    got = [draw(wrapper, x, g) for g in (1, 1, 9, 0, 0, 9, 9, 9, 9, 9, 9)]
    assert got == [False, True, False, False, False, False, False, False, False, False, True]


@every_case
@both_windows
def test_on_step_gets_plain_numbers_of_the_window_that_closed(case, accumulate):
    calls, lengths, window = [], [], 0
    params = parameters()
    options = {} if case.make(SGD(parameters())).needs_draw_norm else {"accumulate": accumulate}
    wrapper = case.make(SGD(params, lr=0.1), on_step=calls.append, **options)
    for i, grads in enumerate(stream(30)):
        backward(params, grads)
        window += 1
        if wrapper.step(metric=1.0 + i % 3):
            lengths.append((i + 1, window))
            window = 0
    assert [(call["batches"], call["num_draws"]) for call in calls] == lengths
    assert [call["steps"] for call in calls] == list(range(1, len(lengths) + 1))
    for call in calls:
        assert all(type(value) in (int, float) for value in call.values())
    assert copy.deepcopy(wrapper).on_step is None


# What others hold, replace, change, or leave half done


@both_windows
@pytest.mark.parametrize("reads_norms", [False, True])
def test_a_tensor_that_is_used_again_for_each_gradient_is_no_part_of_the_sum(
    reads_norms, accumulate
):
    x, y, own = scalar(), scalar(), torch.zeros(1)
    if reads_norms:
        sgd = SGD([x, y], lr=1.0)
        wrapper = gqc.OptimizerWrapperGNTS(sgd, 1e9, min_draws=2, accumulate=accumulate)
    else:
        wrapper = sbc([x, y], 2, accumulate=accumulate)
    for grad in (2.0, 4.0):
        own.fill_(grad)
        x.grad, y.grad = own.detach() if reads_norms else own, own
        if accumulate == "grad":
            with pytest.raises(RuntimeError, match='made by hand need accumulate="buffer"'):
                wrapper.step()
            return
        wrapper.step()
    assert (x.item(), y.item(), own.item()) == (-3.0, -3.0, 4.0)


@both_windows
def test_gradients_that_are_kept_to_be_looked_at_stay_as_they_are(accumulate):
    x, kept = scalar(), []
    wrapper = sbc([x], 3, accumulate=accumulate)
    for grad in (2.0, 4.0, 6.0):
        (x * grad).sum().backward()
        kept.append(x.grad)
        wrapper.step()
    if accumulate == "buffer":
        assert [grad.item() for grad in kept] == [2.0, 4.0, 6.0]
    assert x.item() == -4.0


CHANGES_OF_A_SUM = {
    "clipped after the step": lambda x: torch.nn.utils.clip_grad_norm_([x], 1.0),
    "zeroed": lambda x: x.grad.zero_(),
    "zeroed as in old loops": lambda x: (x.grad.detach_(), x.grad.zero_()),
}


@both_windows
@pytest.mark.parametrize("is_view", [False, True])
@pytest.mark.parametrize("change", CHANGES_OF_A_SUM.values(), ids=CHANGES_OF_A_SUM)
def test_the_next_backward_does_not_hide_a_change_of_the_sum(change, is_view, accumulate):
    x, y, flat = scalar(), scalar(), torch.zeros(2)
    wrapper = sbc([x, y], 2, accumulate=accumulate)
    for grad in (2.0, 4.0):
        if is_view and x.grad is None:
            x.grad, y.grad = flat.zero_().split(1)
        (x * grad + y * grad).sum().backward()
        if accumulate == "grad" and grad == 4.0:
            with pytest.raises(RuntimeError, match="changed in place"):
                wrapper.step()
            return
        wrapper.step()
        if x.grad is not None and not (is_view and change is not CHANGES_OF_A_SUM["zeroed"]):
            change(x)
        elif x.grad is not None:
            x.grad.mul_(0.5)  # a view cannot be detached
    assert (x.item(), y.item()) == (-3.0, -3.0)


@both_windows
def test_a_sum_that_is_clipped_between_two_backwards_of_a_draw_is_refused(accumulate):
    x = scalar()
    wrapper = sbc([x], 2, accumulate=accumulate)
    for number in range(2):
        (10 * x).sum().backward()
        torch.nn.utils.clip_grad_norm_([x], 1.0)
        (10 * x).sum().backward()
        if accumulate == "grad" and number == 1:
            with pytest.raises(RuntimeError, match="clip_norm="):
                wrapper.step()
            return
        wrapper.step()
    assert x.item() == pytest.approx(-11.0)


@both_windows
def test_a_backward_that_broke_off_leaves_no_part_of_a_gradient(accumulate):
    x, y = scalar(), scalar(1.0)
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x, y], lr=1.0), 1e9, min_draws=2, accumulate=accumulate)
    (2 * x + 2 * y).sum().backward()
    wrapper.step()
    broken = Broken.apply(y, OSError("out of memory"))
    with pytest.raises(OSError, match="out of memory"):
        (broken * 1.0 * x).sum().backward()  # x gets its gradient first
    assert x.grad is not None
    (4 * x + 4 * y).sum().backward()
    with pytest.raises(RuntimeError, match=r"ended with an error.*zero_grad\(\) forgets it"):
        wrapper.step()
    if accumulate == "grad":
        wrapper.discard()
        (2 * x + 2 * y).sum().backward()
        wrapper.step()
    else:
        wrapper.zero_grad()
    (4 * x + 4 * y).sum().backward()
    assert wrapper.step() is True
    assert (x.item(), y.item()) == (-3.0, -2.0)


@both_windows
def test_an_error_in_the_wrapped_step_drops_the_window(accumulate):
    """A hook or an interrupt in mid-step: the next window holds its own draws alone."""
    x = scalar()
    wrapper = sbc([x], 2, accumulate=accumulate)

    def fail(*_):
        handle.remove()
        raise KeyboardInterrupt

    handle = wrapper.optimizer.register_step_pre_hook(fail)
    draw(wrapper, x, 2.0)
    with pytest.raises(KeyboardInterrupt):
        draw(wrapper, x, 4.0)
    assert (wrapper.num_draws, x.grad) == (0, None)
    assert [draw(wrapper, x, g) for g in (6.0, 8.0)] == [False, True]
    assert x.item() == -7.0


@both_windows
def test_an_error_in_mid_draw_leaves_count_and_sum_together(accumulate, monkeypatch):
    x = scalar()
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x], lr=1.0), 1e9, min_draws=3, accumulate=accumulate)
    draw(wrapper, x, 2.0)

    def interrupt(norms):
        raise KeyboardInterrupt

    monkeypatch.setattr(wrapper, "_read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw(wrapper, x, 10.0)
    monkeypatch.undo()
    (saved,) = wrapper.state_dict()["wrappers"]
    assert saved["num_draws"] == (2 if accumulate == "grad" else 1)
    assert saved["pending"][0].item() == (12.0 if accumulate == "grad" else 2.0)
    assert draw(wrapper, x, 3.0) is (accumulate == "grad")  # in .grad it was added already
    if accumulate == "buffer":
        draw(wrapper, x, 4.0)
    assert x.item() == (-5.0 if accumulate == "grad" else -3.0)


@both_windows
def test_the_wrapped_optimizer_is_not_stepped_by_itself_in_mid_window(accumulate):
    x = scalar()
    for wrapper in (sbc([x], 2, accumulate=accumulate), copy.deepcopy(sbc([x], 2))):
        (x,) = wrapper.param_groups[0]["params"]
        draw(wrapper, x, 2.0)
        with pytest.raises(RuntimeError, match=r"SGD\.step\(\) by itself, while 1 draws of"):
            wrapper.optimizer.step()
        draw(wrapper, x, 4.0)
        assert x.item() == -3.0
        x.grad = torch.ones(1)
        wrapper.optimizer.step()  # between windows it may be
        assert x.item() == -4.0
        x.grad = None


def test_a_parameter_that_is_given_twice_is_refused():
    x = scalar()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        sgd = SGD([x, x], lr=1.0)
    with pytest.raises(ValueError, match="2 parameters, of which 1 are different"):
        gqc.OptimizerWrapperGNTS(sgd)


@every_case
def test_a_tunable_set_as_an_attribute_is_that_of_all_groups(case):
    groups = [{"params": [p]} for p in parameters()]
    wrapper = case.make(SGD(groups, lr=0.1))
    for name in wrapper.strictest:
        setattr(wrapper, name, 0.125)
        assert [group[name] for group in wrapper.param_groups] == [0.125] * 3
        assert getattr(wrapper, name) == wrapper.tunable(name) == 0.125


def test_the_physical_batch_of_sbc_may_change():
    x = scalar()
    wrapper = gqc.OptimizerWrapperSBC(SGD([x], lr=1.0), 2, 8)
    draw(wrapper, x, 1.0)
    wrapper.physical_batch_size = 6
    assert draw(wrapper, x, 5.0) is True
    assert x.item() == -(2 * 1.0 + 6 * 5.0) / 8


@pytest.mark.parametrize("bad", ["0.5", None])
def test_a_tunable_that_is_no_number_is_named(bad):
    with pytest.raises(ValueError, match=r"gradient_norm_threshold=.*expected a finite number > 0"):
        gqc.OptimizerWrapperGNTS(SGD([scalar()]), bad)
