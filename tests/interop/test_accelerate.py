"""Accelerate needs no callback: an attached schedule is stepped and saved with its wrapper."""

import pytest
import torch
from interop.loops import batches, model
from torch.nn import functional as F

import gqc
from gqc.integrations import attach

accelerate = pytest.importorskip("accelerate")

NUM = 24
THRESHOLD = "gradient_norm_threshold"


def scheduled(net):
    adamw = torch.optim.AdamW(net.parameters(), lr=0.05)
    wrapper = gqc.OptimizerWrapperGNTS(adamw, 1.0, max_draws=4, clip_norm=0.2)
    return wrapper, gqc.get_norm_threshold_cosine_annealing_with_warmup(wrapper, 5, NUM, 0.2, 0.1)


def train(accelerator, net, optimizer, data):
    thresholds = []
    for x, y in data:
        with accelerator.accumulate(net):
            accelerator.backward(F.cross_entropy(net(x), y))
            optimizer.step()
            optimizer.zero_grad()
        thresholds.append(optimizer.param_groups[0][THRESHOLD])
    return thresholds


def by_hand(data, accumulated=1):
    net = model()
    wrapper, schedule = scheduled(net)
    thresholds = []
    for number, (x, y) in enumerate(data, 1):
        (F.cross_entropy(net(x), y) / accumulated).backward()
        if number % accumulated == 0:
            wrapper.step()
            schedule.step()
        thresholds.append(wrapper.param_groups[0][THRESHOLD])
    return net, thresholds


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture
def accelerator(request):
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    return accelerate.Accelerator(cpu=True, gradient_accumulation_steps=request.param)


@pytest.mark.parametrize("accelerator", [1, 2], indirect=True)
def test_it_is_the_loop_by_hand(accelerator):
    net = model()
    wrapper, schedule = scheduled(net)
    attach(schedule)
    prepared, optimizer = accelerator.prepare(net, wrapper)
    thresholds = train(accelerator, prepared, optimizer, batches(NUM))
    other, expected = by_hand([*batches(NUM)], accelerator.gradient_accumulation_steps)
    assert thresholds == expected
    assert same(net, other)


@pytest.mark.parametrize("accelerator", [1], indirect=True)
@pytest.mark.parametrize("world_size", [1, 3])
def test_it_resumes_in_mid_window(accelerator, world_size, tmp_path, monkeypatch):
    data = [*batches(NUM)]
    net = model()
    wrapper, schedule = scheduled(net)
    attach(schedule)
    prepared, optimizer = accelerator.prepare(net, wrapper)
    monkeypatch.setitem(accelerate.state.AcceleratorState().__dict__, "num_processes", world_size)
    train(accelerator, prepared, optimizer, data[:7])
    assert wrapper.num_draws > 0
    accelerator.save_state(str(tmp_path))
    wrapper.discard()
    schedule.go_to(0)
    torch.nn.init.zeros_(net[0].weight)
    accelerator.load_state(str(tmp_path))
    thresholds = train(accelerator, prepared, optimizer, data[7:])
    other, expected = by_hand(data)
    assert thresholds == expected[7:]
    assert same(net, other)


@pytest.mark.parametrize("accelerator", [1], indirect=True)
def test_a_schedule_that_nobody_saved_does_not_start_again(accelerator, tmp_path):
    net = model()
    wrapper, schedule = scheduled(net)
    prepared, optimizer = accelerator.prepare(net, wrapper)
    for x, y in batches(7):
        accelerator.backward(F.cross_entropy(prepared(x), y))
        optimizer.step()
        schedule.step()
    accelerator.save_state(str(tmp_path))
    schedule.go_to(0)
    accelerator.load_state(str(tmp_path))
    with pytest.raises(RuntimeError, match="but not its schedule, which is at step 0 with 2"):
        schedule.step()


@pytest.mark.parametrize("accelerator", [1], indirect=True)
@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
def test_clipping_by_the_accelerator_is_told_of(accelerator, accumulate):
    net = model()
    sgd = torch.optim.SGD(net.parameters(), lr=1.0)
    wrapper = gqc.OptimizerWrapperGNTS(sgd, 1.0, accumulate=accumulate)
    prepared, optimizer = accelerator.prepare(net, wrapper)
    (x, y), *_ = batches(1)
    accelerator.backward(F.cross_entropy(prepared(x), y))
    accelerator.clip_grad_norm_(prepared.parameters(), 0.01)
    if accumulate == "grad":
        with pytest.raises(RuntimeError, match="pass clip_norm= to the wrapper"):
            optimizer.step()
    else:
        with pytest.warns(UserWarning, match="pass clip_norm= to the wrapper"):
            optimizer.step()
