"""Every variant against the formulas; the published ones also bit by bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from upgd_reference import NORMALIZATIONS, OPTIMIZERS, Slow, released_step

from gqc.upgd import UPGD, utility

SHAPES = ((3, 4), (5,), (2, 2, 2), (), (1,))
HYPER = {"lr": 0.05, "weight_decay": 0.1, "sigma": 0.0}
EVERY = [
    pytest.param(
        name, normalization, scope, protect, id=f"{name}-{normalization}-{scope}-{protect}"
    )
    for name in OPTIMIZERS
    for normalization in NORMALIZATIONS
    for scope in ("global", "local")
    for protect in (True, False)
]


def hyper(name: str, **changes) -> dict:
    """The settings of ``Slow``, by the names that the optimizer has for them."""
    own = {
        "upgd": {"beta_utility": 0.9},
        "adaptive": {"beta_utility": 0.9, "betas": (0.8, 0.9), "eps": 1e-3},
        "upgdw": {"betas": (0.8, 0.9), "eps": 1e-3},
    }
    return {**HYPER, **own[name], **changes}


def make_params(dtype: torch.dtype, shapes=SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def run(name: str, dtype: torch.dtype, num_steps: int, missing: bool = False, **changes):
    """The optimizer and the slow reference on the same gradients and noise."""
    params = [p.requires_grad_() for p in make_params(dtype)]
    generator = torch.Generator().manual_seed(11)
    optimizer = OPTIMIZERS[name](params, **hyper(name, generator=generator, **changes))
    slow = Slow(
        [p.shape for p in params],
        [p.detach().double().flatten().tolist() for p in params],
        is_adam=name != "upgd",
        **changes,
    )
    stream, copy = torch.Generator().manual_seed(5), torch.Generator().manual_seed(11)
    total = sum(p.numel() for p in params)
    for i in range(num_steps):
        for k, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=stream, dtype=torch.float64).to(dtype)
            if missing and (i + k) % 3 == 0:
                p.grad = None
        here = [p.numel() for p in params if p.grad is not None]
        is_noisy = slow.sigma > 0 or slow.adaptive_noise
        flat = torch.zeros(total, dtype=dtype)
        if is_noisy:
            flat = torch.empty(sum(here), dtype=dtype).normal_(generator=copy)
        pieces = iter(flat.double().split(here) if is_noisy else flat.split(here))
        noise = [[] if p.grad is None else next(pieces).tolist() for p in params]
        grads = [None if p.grad is None else p.grad.double().flatten().tolist() for p in params]
        optimizer.step()
        slow.step(grads, noise)
    return params, slow


def error(params: list[Tensor], slow: Slow) -> float:
    """Largest deviation relative to the largest weight."""
    a = torch.cat([p.detach().double().flatten() for p in params])
    b = torch.tensor([w for weights in slow.weights for w in weights], dtype=torch.float64)
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(("name", "normalization", "scope", "protect"), EVERY)
@pytest.mark.parametrize("num_steps", [1, 50])
def test_float64_follows_the_formulas(name, normalization, scope, protect, num_steps):
    params, slow = run(
        name,
        torch.float64,
        num_steps,
        normalization=normalization,
        scope=scope,
        protect=protect,
        sigma=0.3,
    )
    assert error(params, slow) < 1e-12


@pytest.mark.parametrize(("name", "normalization", "scope", "protect"), EVERY)
def test_float32_follows_the_formulas_to_1e_6(name, normalization, scope, protect):
    params, slow = run(
        name,
        torch.float32,
        50,
        normalization=normalization,
        scope=scope,
        protect=protect,
        sigma=0.3,
    )
    assert error(params, slow) < 1e-6


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("scope", ["global", "local"])
def test_missing_gradients_leave_a_parameter_and_its_step_alone(name, normalization, scope):
    params, slow = run(
        name, torch.float64, 20, missing=True, normalization=normalization, scope=scope, sigma=0.3
    )
    assert len(set(slow.num_steps)) > 1
    assert error(params, slow) < 1e-12


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("reference", ["rms", "norm"])
@pytest.mark.parametrize("instant", [True, False])
@pytest.mark.parametrize("floor", [1e-6, 1.0])
def test_adaptive_noise_follows_the_formulas(name, reference, instant, floor):
    params, slow = run(
        name,
        torch.float64,
        20,
        missing=True,
        sigma=0.2,
        adaptive_noise=True,
        noise_reference=reference,
        noise_beta=0.7,
        instant_noise_scale=instant,
        min_noise_std=floor,
        step_scale=2.0,
    )
    assert error(params, slow) < 1e-12


RELEASED = {
    "upgd": (None, {"beta_utility": 0.999}),
    "adaptive": (
        (0.9, 0.999, 1e-8),
        {"beta_utility": 0.999, "betas": (0.9, 0.999), "eps": 1e-8},
    ),
    "upgdw": ((0.9, 0.999, 1e-8), {"betas": (0.9, 0.999), "eps": 1e-8}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("normalization", ["max_published", "minmax_published"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("protect", [True, False])
@pytest.mark.parametrize("sigma", [0.0, 0.01])
def test_published_variants_give_the_bits_of_the_released_code(
    name, normalization, scope, protect, sigma
):
    shapes = ((37, 5), (129,), (2, 3, 4))
    ours = [p.requires_grad_() for p in make_params(torch.float32, shapes)]
    theirs = make_params(torch.float32, shapes)
    adam, own = RELEASED[name]
    optimizer = OPTIMIZERS[name](
        ours,
        lr=0.01,
        weight_decay=0.01,
        sigma=sigma,
        normalization=normalization,
        scope=scope,
        protect=protect,
        step_scale=2.0,
        generator=torch.Generator().manual_seed(4),
        **own,
    )
    stream, copy = torch.Generator().manual_seed(8), torch.Generator().manual_seed(4)
    states: list[dict] = [{} for _ in theirs]
    sizes = [p.numel() for p in theirs]
    for _ in range(50):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=stream)
            b.grad = a.grad.clone()
        flat = torch.zeros(sum(sizes))
        if sigma:
            flat.normal_(generator=copy)
        noise = [z.view_as(p) for z, p in zip(flat.split(sizes), theirs, strict=True)]
        optimizer.step()
        released_step(
            theirs,
            states,
            noise,
            lr=0.01,
            weight_decay=0.01,
            beta=0.999,
            sigma=sigma,
            normalization=normalization,
            scope=scope,
            protect=protect,
            adam=adam,
            step_scale=2.0,
        )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("step_scale", [1.0, 2.0])
def test_equal_utilities_without_noise_are_sgd_with_half_the_rate(step_scale):
    """All weights and gradients agree, so all utilities do at every step; 1/2 is exact."""
    ours = [torch.full((7,), 0.3, requires_grad=True), torch.full((2, 3), 0.3, requires_grad=True)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    optimizer = UPGD(ours, lr=0.1, weight_decay=0.0, sigma=0.0, step_scale=step_scale)
    sgd = torch.optim.SGD(theirs, lr=step_scale * 0.1 / 2)
    for i in range(20):
        for p in [*ours, *theirs]:
            p.grad = torch.full_like(p, math.sin(i + 1))
        optimizer.step()
        sgd.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def blockwise(monkeypatch, name, *, block: int, threads: int = 1, **settings) -> list[Tensor]:
    """Parameters after five steps in blocks of ``block`` elements."""
    monkeypatch.setattr(utility, "BLOCK", block)
    monkeypatch.setattr(utility, "SERIAL", 16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        shapes = ((70, 9), (130,), (3,), (50, 3))
        params = [p.requires_grad_() for p in make_params(torch.float64, shapes)]
        params[3] = params[3].detach().t().requires_grad_()  # not contiguous
        optimizer = OPTIMIZERS[name](params, **hyper(name, **settings))
        stream = torch.Generator().manual_seed(0)
        for _ in range(5):
            for p in params:
                p.grad = torch.randn(p.shape, generator=stream, dtype=torch.float64)
            optimizer.step()
    finally:
        torch.set_num_threads(before)
    return params


every_way_of_scaling = pytest.mark.parametrize("normalization", NORMALIZATIONS)
every_scope = pytest.mark.parametrize("scope", ["global", "local"])


@pytest.mark.parametrize("name", OPTIMIZERS)
@every_way_of_scaling
@every_scope
def test_cutting_into_blocks_changes_nothing(monkeypatch, name, normalization, scope):
    """One block, many, one tensor at a time."""
    rules = {"normalization": normalization, "scope": scope, "sigma": 0.0}
    expected = blockwise(monkeypatch, name, block=10**9, **rules)
    for block, foreach in ((64, None), (100, None), (64, False)):
        ours = blockwise(monkeypatch, name, block=block, foreach=foreach, **rules)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
@every_way_of_scaling
@every_scope
def test_threads_that_share_the_blocks_change_nothing(monkeypatch, name, normalization, scope):
    """Each block has its own stream of noise, whoever draws it."""
    rules = {"normalization": normalization, "scope": scope, "sigma": 0.1, "block": 64}
    expected = blockwise(monkeypatch, name, **rules)
    for threads in (2, 5):
        ours = blockwise(monkeypatch, name, threads=threads, **rules)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("std", [0.5, "of each tensor"])
def test_noise_of_many_blocks_is_gaussian_and_new_in_each_block_and_step(std):
    """With equal utilities gates are 1/2; without gradient and decay only the noise is left."""
    size, count = utility.BLOCK, 4
    param = torch.zeros(count * size, requires_grad=True)
    adaptive = {"adaptive_noise": True, "min_noise_std": 0.5} if std != 0.5 else {}
    optimizer = UPGD([param], lr=1.0, weight_decay=0.0, sigma=0.5, **adaptive)
    noises = []
    for _ in range(2):
        with torch.no_grad():
            param.zero_()
        param.grad = torch.zeros_like(param)
        optimizer.step()
        noises += list((-2 * param.detach().double()).split(size))
    blocks = torch.stack(noises) / 0.5
    assert blocks.mean(dim=1).abs().max() < 5 / math.sqrt(size)
    assert (blocks.square().mean(dim=1) - 1).abs().max() < 5 * math.sqrt(2 / size)
    assert (blocks.pow(4).mean(dim=1) - 3).abs().max() < 5 * math.sqrt(96 / size)
    correlations = torch.corrcoef(blocks) - torch.eye(2 * count, dtype=torch.float64)
    assert correlations.abs().max() < 5 / math.sqrt(size)


def test_a_resumed_run_draws_the_noise_of_many_blocks_that_it_would_have_drawn():
    def make() -> tuple[Tensor, UPGD]:
        param = torch.linspace(-1, 1, 3 * utility.BLOCK, requires_grad=True)
        param.grad = torch.linspace(1, 2, len(param))
        return param, UPGD([param], lr=0.1, sigma=0.1)

    whole, optimizer = make()
    optimizer.step()
    middle, saved = whole.detach().clone(), copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    resumed, again = make()
    again.load_state_dict(saved)
    with torch.no_grad():
        resumed.copy_(middle)
    again.step()
    assert torch.equal(whole, resumed)
