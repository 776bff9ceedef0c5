"""Every lr scheduler of torch and one of transformers, on the wrapper and on what it wraps."""

from __future__ import annotations

import inspect
import math
import warnings

import pytest
import torch
from interop.loops import accumulate_by_hand, batches, equal, model
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers

import gqc

NUM = 48  # microbatches; a step every 4


def chained(optimizer):
    parts = [
        schedulers.LinearLR(optimizer, 0.1, 1.0, 10),
        schedulers.ExponentialLR(optimizer, 0.97),
    ]
    return schedulers.ChainedScheduler(parts, optimizer)


def sequential(optimizer):
    parts = [schedulers.ConstantLR(optimizer, 0.1, 10), schedulers.CosineAnnealingLR(optimizer, 30)]
    return schedulers.SequentialLR(optimizer, parts, milestones=[12])


MAKERS = {
    "ChainedScheduler": chained,
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.3, 20),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, NUM),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 7, 2),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=8),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.95),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.1, 1.0, 30),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [5, 11, 30], 0.5),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.97),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.2, total_steps=NUM + 1),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, NUM, 2.0),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=2),
    "SequentialLR": sequential,
    "StepLR": lambda o: schedulers.StepLR(o, 9),
}


def stepper(scheduler):
    """``scheduler.step``, with a metric that stops improving where one is asked for."""
    if isinstance(scheduler, schedulers.ReduceLROnPlateau):
        return lambda: scheduler.step(1.0)
    return scheduler.step


def make_sgd(net):
    """Momentum is what OneCycleLR and CyclicLR move besides the lr."""
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def settings_of(optimizer):
    return [(group["lr"], group["momentum"]) for group in optimizer.param_groups]


def test_every_scheduler_of_torch_is_here():
    known = {
        name
        for name, kind in inspect.getmembers(schedulers, inspect.isclass)
        if issubclass(kind, schedulers.LRScheduler) and not name.endswith("LRScheduler")
    }
    assert set(MAKERS) == known


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("attached", ["wrapper", "inner"])
def test_torch_scheduler(name, attached):
    ours, by_hand = model(), model()
    data = batches(NUM)
    optimizer, expected = make_sgd(by_hand), []
    scheduler = MAKERS[name](optimizer)
    advance = stepper(scheduler)

    def each():
        advance()
        expected.append(settings_of(optimizer))

    with warnings.catch_warnings():
        # the loop by hand steps the scheduler three times before the optimizer's first step
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        accumulate_by_hand(by_hand, optimizer, data, 4, each)

    inner = make_sgd(ours)
    wrapper = gqc.OptimizerWrapperSBC(inner, 8, 32)
    advance, got = stepper(MAKERS[name](wrapper if attached == "wrapper" else inner)), []
    for x, y in data:
        F.cross_entropy(ours(x), y).backward()
        wrapper.step()
        advance()
        got.append(settings_of(wrapper))
    assert got == expected
    assert len({lr for (lr, _), *_ in got}) > 1
    assert equal(ours, by_hand)


@pytest.mark.parametrize("attached", ["wrapper", "inner"])
def test_torch_schedulers_before_wrapping_and_saved_in_mid_window(attached):
    """Made first, wrapped later, saved after 6 of 48 microbatches: the same run."""
    data = batches(NUM)

    def start():
        net = model()
        inner = make_sgd(net)
        early = schedulers.CosineAnnealingLR(inner, NUM)
        wrapper = gqc.OptimizerWrapperSBC(inner, 8, 32)
        late = schedulers.CosineAnnealingLR(wrapper, NUM)
        return net, wrapper, late if attached == "wrapper" else early

    def run(net, wrapper, scheduler, part):
        for x, y in part:
            F.cross_entropy(net(x), y).backward()
            wrapper.step()
            scheduler.step()

    whole, cut, resumed = start(), start(), start()
    run(*whole, data)
    run(*cut, data[:6])
    for old, new in zip(cut, resumed, strict=True):
        new.load_state_dict(old.state_dict())
    run(*resumed, data[6:])
    assert equal(whole[0], resumed[0])
    assert settings_of(resumed[1]) == settings_of(whole[1])


@pytest.mark.parametrize("attached", ["wrapper", "inner"])
def test_hugging_face_cosine_with_warmup(attached):
    transformers = pytest.importorskip("transformers")
    warmup, peak = 10, 0.05
    ours, by_hand = model(), model()
    inner = torch.optim.AdamW(ours.parameters(), lr=peak)
    wrapper = gqc.OptimizerWrapperSBC(inner, 8, 24)
    scheduler = transformers.get_cosine_schedule_with_warmup(
        wrapper if attached == "wrapper" else inner, warmup, NUM
    )
    used = []
    for x, y in batches(NUM):
        used.append(wrapper.param_groups[0]["lr"])
        F.cross_entropy(ours(x), y).backward()
        wrapper.step()
        scheduler.step()

    def formula(step):
        if step < warmup:
            return peak * step / warmup
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (NUM - warmup)))

    assert used == pytest.approx([formula(step) for step in range(NUM)])
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.0)
    rates = iter(used[1:])

    def each():
        optimizer.param_groups[0]["lr"] = next(rates, 0.0)

    accumulate_by_hand(by_hand, optimizer, batches(NUM), 3, each)
    assert equal(ours, by_hand)


def test_a_norm_schedule_of_ours_beside_one_of_torch():
    """Each writes its own key of the same group, whichever is attached first."""
    net = model()
    wrapper = gqc.OptimizerWrapperGNTS(make_sgd(net))
    lr = schedulers.LinearLR(wrapper, 0.5, 1.0, 20)
    norm = gqc.get_linear_schedule(wrapper, 4.0, 1.0, 30, key="gradient_norm_threshold")
    for step, (x, y) in enumerate(batches(40)):
        group = wrapper.param_groups[0]
        assert group["lr"] == pytest.approx(0.1 * (0.5 + 0.5 * min(step / 20, 1.0)))
        assert group["gradient_norm_threshold"] == pytest.approx(4 - 3 * min(step / 30, 1.0))
        F.cross_entropy(net(x), y).backward()
        wrapper.step()
        lr.step()
        norm.step()
