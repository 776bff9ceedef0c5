"""Every variant of UPGD on a card: the formulas' numbers, with the noise of the card's stream."""

from __future__ import annotations

import io

import pytest
import torch
from gpu.streams import waits
from torch import Tensor
from upgd_reference import NORMALIZATIONS, OPTIMIZERS, Slow

import gqc

SHAPES = ((3, 4), (5,), (2, 2, 2), (), (1,))
HYPER = {
    "upgd": {"beta_utility": 0.9},
    "adaptive": {"beta_utility": 0.9, "betas": (0.8, 0.9), "eps": 1e-3},
    "upgdw": {"betas": (0.8, 0.9), "eps": 1e-3},
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def parameters(device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
    return [v.to(device, dtype).requires_grad_() for v in values]


def make(name: str, params: list[Tensor], **changes):
    generator = torch.Generator(params[0].device).manual_seed(11)
    options = {"lr": 0.05, "weight_decay": 0.1, "sigma": 0.3, "generator": generator}
    return OPTIMIZERS[name](params, **{**options, **HYPER[name], **changes})


def set_gradients(params: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        value = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = value.to(p.device, p.dtype)


@every_optimizer
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("options", [{}, {"protect": False}, {"adaptive_noise": True}], ids=str)
def test_float32_follows_the_formulas_to_1e_6(name, normalization, scope, options, device):
    """Of the largest weight: 30 steps round each weight by 2^-24 a few times, at random."""
    changes = {"normalization": normalization, "scope": scope, **options}
    params = parameters(device)
    optimizer = make(name, params, **changes)
    weights = [p.detach().double().flatten().tolist() for p in params]
    slow = Slow([p.shape for p in params], weights, is_adam=name != "upgd", sigma=0.3, **changes)
    copy = torch.Generator(device).manual_seed(11)
    sizes = [p.numel() for p in params]
    for step in range(30):
        set_gradients(params, step)
        noise = torch.empty(sum(sizes), device=device).normal_(generator=copy)
        grads = [p.grad.double().flatten().tolist() for p in params]
        optimizer.step()
        slow.step(grads, [piece.tolist() for piece in noise.double().split(sizes)])
    ours = torch.cat([p.detach().double().flatten().cpu() for p in params])
    theirs = torch.tensor([w for row in slow.weights for w in row], dtype=torch.float64)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-6


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_checkpoint_that_was_read_on_the_cpu_goes_on_bit_for_bit(name, dtype, adaptive, device):
    """The noise too: the file holds the state of the card's generator."""
    changes = {"adaptive_noise": True, "instant_noise_scale": False} if adaptive else {}
    whole, first = parameters(device, dtype), parameters(device, dtype)
    uncut, before = make(name, whole, **changes), make(name, first, **changes)
    for step in range(10):
        set_gradients(whole, step)
        uncut.step()
    for step in range(4):
        set_gradients(first, step)
        before.step()
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    resumed = [p.detach().clone().requires_grad_() for p in first]
    after = OPTIMIZERS[name](resumed)
    after.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    for step in range(4, 10):
        set_gradients(resumed, step)
        after.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


@every_optimizer
@pytest.mark.parametrize("nonfinite", ["raise", "skip", "ignore"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_host_waits_once_a_step_or_never(name, nonfinite, adaptive, device):
    params = parameters(device)
    options = {"instant_noise_scale": False} if adaptive else {}
    optimizer = make(name, params, nonfinite=nonfinite, adaptive_noise=adaptive, **options)
    for step in range(4):
        set_gradients(params, step)
        with waits(device) as seen:
            optimizer.step()
        if step:
            assert len(seen) == (0 if nonfinite == "ignore" else 1), seen


@every_optimizer
def test_inside_a_wrapper_it_steps_with_the_mean(name, device):
    ours, theirs = parameters(device), parameters(device)
    wrapper = gqc.OptimizerWrapperGNTS(make(name, ours), 1e-9, max_draws=2)
    optimizer = make(name, theirs)
    for step in range(0, 10, 2):
        means = [torch.zeros_like(p) for p in theirs]
        for draw in (step, step + 1):
            set_gradients(theirs, draw)
            for a, b, mean in zip(ours, theirs, means, strict=True):
                a.grad = b.grad.clone() if a.grad is None else a.grad.add_(b.grad)
                mean += b.grad
            stepped = wrapper.step()
        assert stepped is True
        for p, mean in zip(theirs, means, strict=True):
            p.grad = mean / 2
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
