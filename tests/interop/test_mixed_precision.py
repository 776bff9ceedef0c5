"""bfloat16 parameters, autocast, and a GradScaler with an overflow inside a window: real loops."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from interop.loops import batches, equal, model
from torch import Tensor
from torch.nn import functional as F

import gqc


def parameters(net: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def test_bfloat16_parameters_step_with_the_float32_mean_of_their_gradients():
    ours, by_hand = model(torch.bfloat16), model(torch.bfloat16)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.01)
    wrapper = gqc.OptimizerWrapperSBC(torch.optim.AdamW(ours.parameters(), lr=0.01), 8, 32)
    sums = [torch.zeros(p.shape) for p in by_hand.parameters()]
    for number, (x, y) in enumerate(batches(40), start=1):
        F.cross_entropy(ours(x.bfloat16()).float(), y).backward()
        assert wrapper.step() is (number % 4 == 0)
        F.cross_entropy(by_hand(x.bfloat16()).float(), y).backward()
        for total, p in zip(sums, by_hand.parameters(), strict=True):
            total += p.grad
            p.grad = None
        if number % 4 == 0:
            for total, p in zip(sums, by_hand.parameters(), strict=True):
                p.grad = (total / 4).bfloat16()
                total.zero_()
            optimizer.step()
            optimizer.zero_grad()
    assert equal(ours, by_hand)
    assert not equal(ours, model(torch.bfloat16))


def test_autocast_is_a_plain_loop_over_the_same_windows():
    ours, by_hand = model(), model()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    inner = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    wrapper = gqc.OptimizerWrapperGNTS(inner, 0.5, max_draws=6)
    window, lengths = 0, []

    def loss(net, x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(x)
            assert logits.dtype == torch.bfloat16
            return F.cross_entropy(logits, y)

    for x, y in batches(60):
        window += 1
        loss(ours, x, y).backward()
        loss(by_hand, x, y).backward()
        if wrapper.step():
            for p in by_hand.parameters():
                p.grad /= window
            optimizer.step()
            optimizer.zero_grad()
            lengths.append(window)
            window = 0
    assert equal(ours, by_hand)
    assert len(set(lengths)) > 1  # the threshold decided, not a constant


@pytest.mark.filterwarnings("ignore:10 windows in a row ran to max_draws=4:UserWarning")
@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_inside_a_window_costs_the_draw_and_a_backoff(accumulate, fused):
    """float16 activations overflow in one microbatch of a real model under autocast.

    The twin runs without a scaler and never sees that microbatch (its window, with "grad").
    """
    ours, twin = model(), model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10_000)
    options = {"accumulate": accumulate, "max_draws": 4}
    inner = [torch.optim.AdamW(n.parameters(), lr=0.01, fused=fused) for n in (ours, twin)]
    wrapper = gqc.OptimizerWrapperGNTS(inner[0], 0.65, grad_scaler=scaler, **options)
    plain = gqc.OptimizerWrapperGNTS(inner[1], 0.65, **options)
    decisions, expected, overflows, was_open = [], [], 0, False
    for number, (x, y) in enumerate(batches(80)):
        is_bad = overflows == 0 and number > 20 and wrapper.num_draws == 2
        if is_bad:
            x = x * 1e30  # float16 ends at 65504
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(ours(x).float(), y)
        if is_bad:
            loss = loss + ours[0](x.half().float()).sum() * 1e38  # Inf in the weights' gradient
        scaler.scale(loss).backward()
        before = parameters(ours)
        stepped = wrapper.step()
        if is_bad:
            overflows, was_open = 1, wrapper.num_draws == 2
            assert not stepped
            assert all(torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))
            if accumulate == "grad":
                plain.discard()
            continue
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(twin(x).float(), y)
        loss.backward()
        decisions.append(stepped)
        expected.append(plain.step())
    assert overflows == 1
    assert was_open is (accumulate == "buffer")
    assert scaler.get_scale() == 2.0**9
    assert wrapper.statistics()["num_discarded"] == (1 if accumulate == "buffer" else 3)
    assert decisions == expected
    assert 25 < sum(expected) < 70, sum(expected)  # neither all forced nor all at once
    # Backward runs in float16: a part of a gradient below its smallest number (6e-8) survives only
    # with the scale.  Adam turns that into some 1e-6 of a parameter (measured), moves being 0.01.
    for a, b in zip(ours.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_scale_grows_once_a_step_not_once_a_draw():
    net = model()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    inner = torch.optim.SGD(net.parameters(), lr=0.01)
    wrapper = gqc.OptimizerWrapperSBC(inner, 1, 5, grad_scaler=scaler)
    scales = []
    for x, y in batches(5 * 7):
        scaler.scale(F.cross_entropy(net(x), y)).backward()
        wrapper.step()
        scales.append(scaler.get_scale())
    assert scales == [4.0] * 14 + [8.0] * 15 + [16.0] * 6


def test_a_scaler_that_steps_the_wrapper_itself_is_refused():
    """It would unscale draws twice, and one overflow would stop all steps for good."""
    net = model()
    wrapper = gqc.OptimizerWrapperSBC(torch.optim.SGD(net.parameters(), lr=0.01), 1, 2)
    scaler = torch.amp.GradScaler("cpu")
    x, y = batches(1)[0]
    scaler.scale(F.cross_entropy(net(x), y)).backward()
    with pytest.raises(RuntimeError, match="Pass grad_scaler=scaler to the wrapper"):
        scaler.step(wrapper)
    off = torch.amp.GradScaler("cpu", enabled=False)  # as a loop keeps it for float32 runs
    assert off.step(wrapper) is False
    assert wrapper.num_draws == 1


@pytest.mark.parametrize("which", ["wrapper", "wrapped"])
@pytest.mark.parametrize("draw", [0, 1])
def test_unscaling_before_a_draw_is_refused(which, draw):
    """The wrapper unscales a window when it closes: a draw would be divided by the scale twice."""
    x = torch.ones(1, requires_grad=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    wrapper = gqc.OptimizerWrapperSBC(torch.optim.SGD([x], lr=1.0), 1, 2, grad_scaler=scaler)
    for _ in range(draw):
        scaler.scale((x * 4).sum()).backward()
        wrapper.step()
    scaler.scale((x * 4).sum()).backward()
    scaler.unscale_(wrapper if which == "wrapper" else wrapper.optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(.*\) before the draw"):
        wrapper.step()
    assert wrapper.num_draws == draw
    assert x.item() == 1.0


@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
def test_a_disabled_scaler_is_as_none(accumulate):
    """As a loop keeps it for float32 runs: its step() would step with NaN."""
    x = torch.ones(3, requires_grad=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    wrapper = gqc.OptimizerWrapperGNTS(
        torch.optim.SGD([x], lr=0.1), 2.0, accumulate=accumulate, grad_scaler=scaler
    )
    x.backward(torch.tensor([1.0, math.nan, 0.0]))
    with pytest.warns(UserWarning, match="NaN"):
        assert wrapper.step() is False
    assert torch.equal(x.detach(), torch.ones(3))
    assert wrapper.statistics()["num_discarded"] == 1


def test_a_scaler_works_through_two_wrappers():
    params = [copy.deepcopy(model()) for _ in range(2)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=10_000)
    stacks = []
    for net, options in zip(params, ({"grad_scaler": scaler}, {}), strict=True):
        inner = gqc.OptimizerWrapperGNR(torch.optim.SGD(net.parameters(), lr=0.01), 0.5)
        stacks.append(gqc.OptimizerWrapperSBC(inner, 1, 3, **options))
    for x, y in batches(12):
        scaler.scale(F.cross_entropy(params[0](x), y)).backward()
        F.cross_entropy(params[1](x), y).backward()
        assert stacks[0].step() is stacks[1].step()
    assert equal(*params)
    assert stacks[0].optimizer.statistics()["steps"] == 4
    assert math.isclose(scaler.get_scale(), 2.0**8)


@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
@pytest.mark.parametrize("how", ["update", "load", "flush"])
def test_a_scale_that_others_change_in_mid_window_is_refused(how, accumulate):
    x = torch.zeros(1, requires_grad=True)

    def make(scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        sgd = torch.optim.SGD([x], lr=1.0)
        options = {"grad_scaler": scaler, "accumulate": accumulate}
        return scaler, gqc.OptimizerWrapperSBC(sgd, 1, 2, **options)

    scaler, wrapper = make(4.0)
    scaler.scale((2 * x).sum()).backward()
    wrapper.step()
    if how == "load":  # and forget that of the scaler
        state = wrapper.state_dict()
        wrapper.discard()
        scaler, wrapper = make(16.0)
        wrapper.load_state_dict(state)
    else:
        scaler.update(16.0)
    if how != "flush":
        scaler.scale((4 * x).sum()).backward()
    with pytest.raises(RuntimeError, match="scale of grad_scaler went from 4 to 16 while 1 draws"):
        wrapper.flush() if how == "flush" else wrapper.step()
    wrapper.discard()
    for grad in (2.0, 4.0):
        scaler.scale((grad * x).sum()).backward()
        wrapper.step()
    assert x.item() == -3.0


@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
@pytest.mark.parametrize("draw", [0, 1])
@pytest.mark.parametrize("overflows", [False, True])
def test_a_shared_scaler_that_is_updated_before_the_step_is_refused(overflows, draw, accumulate):
    """Two models, one GradScaler: an overflow of the other halves a scale that was used."""
    x, y = (torch.zeros(1, requires_grad=True) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10_000)
    other = torch.optim.SGD([y], lr=1.0)
    wrapper = gqc.OptimizerWrapperSBC(
        torch.optim.SGD([x], lr=1.0), 1, 2, grad_scaler=scaler, accumulate=accumulate
    )
    for number in range(2):
        scaler.scale((2 * x).sum()).backward()
        if number == draw:
            y.grad = None
            scaler.scale((math.inf if overflows else 1.0) * y.sum()).backward()
            scaler.step(other)
            scaler.update()
            if overflows:
                with pytest.raises(
                    RuntimeError, match=r"went from 4 to 2 .*a GradScaler of its own"
                ):
                    wrapper.step()
                return
        wrapper.step()
    assert x.item() == -2.0


def test_a_scaler_that_the_wrapper_was_not_told_of_ends_in_an_error_of_torch():
    """Nothing in a gradient says that its loss was scaled; but then there is nothing to update."""
    x = torch.zeros(1, requires_grad=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    wrapper = gqc.OptimizerWrapperSBC(torch.optim.SGD([x], lr=1.0), 1, 2)
    scaler.scale(x.sum()).backward()
    wrapper.step()
    with pytest.raises(AssertionError, match="No inf checks were recorded prior to update"):
        scaler.update()


def test_a_loss_that_was_never_scaled_is_refused():
    x = torch.zeros(1, requires_grad=True)
    sgd = torch.optim.SGD([x], lr=1.0)
    wrapper = gqc.OptimizerWrapperGNTS(sgd, grad_scaler=torch.amp.GradScaler("cpu"))
    x.sum().backward()
    with pytest.raises(RuntimeError, match=r"scaler\.scale\(loss\)\.backward\(\)"):
        wrapper.step()
