"""float16 autocast with a GradScaler that works: windows, an overflow in one, and its backoff."""

from __future__ import annotations

import pytest
import torch
from gpu.streams import waits
from interop.loops import batches, model
from torch.nn import functional as F

import gqc

WRAPPERS = {
    "gnts": lambda opt, **kw: gqc.OptimizerWrapperGNTS(opt, 0.65, max_draws=4, **kw),
    "sbc": lambda opt, **kw: gqc.OptimizerWrapperSBC(opt, 1, 3, **kw),
    "gns": lambda opt, **kw: gqc.OptimizerWrapperGNS(opt, 0.5, max_draws=4, **kw),
    "normtest": lambda opt, **kw: gqc.OptimizerWrapperNormTest(opt, 1.0, max_draws=4, **kw),
    "gnr": lambda opt, **kw: gqc.OptimizerWrapperGNR(opt, 0.5, **kw),
    "mht": lambda opt, **kw: gqc.OptimizerWrapperMHT(opt, 0.9, 0.2, max_draws=4, **kw),
    "vgs": lambda opt, **kw: gqc.OptimizerWrapperVGS(opt, warmup_steps=3, **kw),
}


def loss_of(net, x, y, device):
    with torch.autocast(device.type, dtype=torch.float16):
        logits = net(x)
        assert logits.dtype == torch.float16
    return F.cross_entropy(logits.float(), y)


def data(num: int, device: torch.device):
    return [(x.to(device), y.to(device)) for x, y in batches(num)]


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("fused", [False, True])
def test_the_scale_changes_nothing_but_what_float16_would_lose(name, fused, device):
    """Against the same wrapper without a scaler, on the same autocast gradients.

    Backward runs in float16, where a gradient below 6e-5 loses digits without the scale, and Adam
    divides by its size: up to 5e-5 of a parameter in 40 moves of 0.01 (measured).
    """
    nets = [model().to(device) for _ in range(2)]
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, growth_interval=5)
    optimizers = [torch.optim.AdamW(n.parameters(), lr=0.01, fused=fused) for n in nets]
    wrapper = WRAPPERS[name](optimizers[0], grad_scaler=scaler)
    plain = WRAPPERS[name](optimizers[1])
    decisions, expected = [], []
    for x, y in data(40, device):
        loss = loss_of(nets[0], x, y, device)
        scaler.scale(loss).backward()
        decisions.append(wrapper.step(metric=loss.detach()))
        loss = loss_of(nets[1], x, y, device)
        loss.backward()
        expected.append(plain.step(metric=loss.detach()))
    assert decisions == expected
    assert scaler.get_scale() == 2.0 ** (10 + sum(expected) // 5)  # it grows by the step
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_inside_a_window_costs_the_draw_and_a_backoff(accumulate, fused, device):
    """With the sum in ``.grad`` its window.  The twin never sees the microbatches that are lost."""
    ours, twin = model().to(device), model().to(device)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, growth_interval=10_000)
    inner = [torch.optim.AdamW(n.parameters(), lr=0.01, fused=fused) for n in (ours, twin)]
    wrapper = gqc.OptimizerWrapperSBC(inner[0], 1, 4, accumulate=accumulate, grad_scaler=scaler)
    plain = gqc.OptimizerWrapperSBC(inner[1], 1, 4, accumulate=accumulate)
    bad, lost = 10, [10] if accumulate == "buffer" else [8, 9, 10, 11]
    for number, (x, y) in enumerate(data(24, device)):
        loss = loss_of(ours, x, y, device)
        if number == bad:
            loss = loss + (ours[0](x) * 1e38).sum() * 1e38
        scaler.scale(loss).backward()
        wrapper.step()
        if number not in lost:
            loss_of(twin, x, y, device).backward()
            plain.step()
    assert wrapper.statistics()["num_discarded"] == len(lost)
    assert wrapper.statistics()["steps"] == plain.statistics()["steps"] == 5
    assert scaler.get_scale() == 2.0**9
    for a, b in zip(ours.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_the_host_waits_once_more_a_step_for_the_scaler(fused, device):
    """``GradScaler.step`` reads whether there was an overflow, but a fused optimizer sees to it."""
    net = model().to(device)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    inner = torch.optim.SGD(net.parameters(), lr=0.01, fused=fused)
    wrapper = gqc.OptimizerWrapperGNTS(inner, 1e-9, max_draws=2, grad_scaler=scaler)
    for number, (x, y) in enumerate(data(12, device)):
        scaler.scale(loss_of(net, x, y, device)).backward()
        with waits(device) as seen:
            stepped = wrapper.step()
        if number > 3:
            assert len(seen) == (2 if stepped and not fused else 1), seen
