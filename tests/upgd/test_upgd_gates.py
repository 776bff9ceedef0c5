"""Which weights are protected: the seven promises, and the saturation of the published bounds.

A gate is observed from outside: without noise and decay it is (w_before - w_after) / (lr * g).
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from upgd_reference import NORMALIZATIONS, OPTIMIZERS

from gqc.upgd import UPGD

LOW, HIGH = 1 / (1 + math.e), math.e / (1 + math.e)  # gates of "minmax": 0.2689, 0.7311
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
every_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)


def gates_of(utilities: Tensor, normalization: str = "minmax", **options) -> Tensor:
    """Gates at the first step where the utilities are the given ones (the gradient is 1)."""
    w = (-utilities.double()).requires_grad_()
    w.grad = torch.ones_like(w)
    before = w.detach().clone()
    options = {"weight_decay": 0.0, "sigma": 0.0, "normalization": normalization, **options}
    lr = 1e-3 * float(before.abs().max() or 1.0)
    UPGD([w], lr=lr, **options).step()
    return (before - w.detach()) / lr


def spread_utilities(count: int = 100_000) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    w, g = torch.randn(2, count, generator=generator, dtype=torch.float64)
    return -g * w


def is_ordered(gates: Tensor, utilities: Tensor) -> bool:
    """The more useful, the smaller the gate?"""
    sorted_gates = gates[utilities.argsort()]
    return bool((sorted_gates.diff() <= 1e-9).all() and sorted_gates[0] > sorted_gates[-1])


def test_negative_utilities_keep_the_order_of_protection():
    u = torch.tensor([-4.0, -1.0, -3.0, -0.5, -2.0])
    assert is_ordered(gates_of(u), u)
    # what it fixes: with a negative maximum, the most useful weight was protected least
    assert is_ordered(-gates_of(u, "max"), u)


@pytest.mark.parametrize("normalization", ["minmax", "max"])
def test_mixed_utilities_keep_the_order_of_protection(normalization):
    u = torch.tensor([-4.0, 1.0, -3.0, 0.0, 2.0])
    assert is_ordered(gates_of(u, normalization), u)


@pytest.mark.parametrize("scale", [1e-40, 1e-12, 1.0, 1e12, 1e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_utilities_have_the_gates_of_moderate_ones(scale, dtype):
    u = torch.tensor([-3.0, -1.0, 0.0, 2.0], dtype=dtype)
    w = (-u * scale).requires_grad_()
    w.grad = torch.ones_like(w)
    optimizer = UPGD([w], lr=scale, weight_decay=0.0, sigma=0.0, beta_utility=0.0)
    before = w.detach().clone()
    optimizer.step()
    # 1e-40 is a float32 denormal of 17 bits, in which utilities and update are rounded
    tolerance = 1e-4 if scale == 1e-40 and dtype == torch.float32 else 1e-6
    expected = gates_of(u.double())
    torch.testing.assert_close(
        ((before - w.detach()).double() / scale), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("value", [-2.0, 0.0, 3.0])
def test_equal_utilities_have_gate_one_half(value):
    assert torch.allclose(gates_of(torch.full((6,), value)), torch.tensor(0.5).double())


@every_optimizer
@every_normalization
@pytest.mark.parametrize("scope", ["global", "local"])
def test_zero_utilities_and_gradients_leave_finite_weights(make, normalization, scope):
    params = [torch.zeros(4, 3, requires_grad=True), torch.ones(5, requires_grad=True)]
    optimizer = make(params, lr=0.1, normalization=normalization, scope=scope)
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(p.isfinite().all() for p in params)


@every_normalization
def test_zero_utilities_have_gate_one_half(normalization):
    # the later fix puts equal utilities at the bottom of their range instead: z = 0 / 1e-8
    expected = HIGH if normalization == "minmax_published" else 0.5
    assert torch.allclose(gates_of(torch.zeros(6), normalization), torch.tensor(expected).double())


def test_no_weight_freezes_and_every_weight_keeps_moving():
    """Over a whole training run gates stay in [0.2689, 0.7311], whatever the utilities."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(500, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = UPGD([w], lr=0.01, weight_decay=0.0, sigma=0.0, beta_utility=0.99)
    for _ in range(300):
        w.grad = w.detach() * torch.linspace(0.1, 3, 500) + torch.randn(500, generator=generator)
        before = w.detach().clone()
        optimizer.step()
        gates = (before - w.detach()) / (0.01 * w.grad)
        assert (gates >= LOW - 1e-9).all()
        assert (gates <= HIGH + 1e-9).all()
        assert (w != before).all()


@pytest.mark.parametrize(
    ("normalization", "ends"),
    [("max_published", (0.0, 1.0)), ("minmax_published", (LOW, HIGH))],
)
def test_published_gates_saturate_at_the_first_step(normalization, ends):
    """With beta 0.999 the corrected utility is 1000 times what it is divided by."""
    gates = gates_of(spread_utilities(), normalization, beta_utility=0.999)
    at_ends = sum((gates - end).abs() < 1e-3 for end in ends)
    assert at_ends.double().mean() > 0.8


@pytest.mark.parametrize("normalization", ["max", "minmax"])
def test_corrected_gates_do_not_saturate(normalization):
    gates = gates_of(spread_utilities(), normalization, beta_utility=0.999)
    ends = (LOW, HIGH) if normalization == "minmax" else (0.0, 1.0)
    assert sum((gates - end).abs() < 1e-3 for end in ends).double().mean() < 0.01
    assert gates.median().item() == pytest.approx(0.5, abs=0.05)
    if normalization == "minmax":
        assert gates.min() >= LOW - 1e-9
        assert gates.max() <= HIGH + 1e-9


def test_gates_do_not_depend_on_the_bias_correction():
    """The first step has the same gates whatever beta, since correction undoes 1 - beta."""
    u = spread_utilities(1000)
    for beta in (0.0, 0.9, 0.9999):
        torch.testing.assert_close(gates_of(u, beta_utility=beta), gates_of(u), rtol=1e-9, atol=0)


def noise_of(optimizer_options: dict, grad: float, count: int = 200_000) -> Tensor:
    """Noise seen from outside: weights are 0, so that all gates are 1/2."""
    w = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    w.grad = torch.full_like(w, grad)
    UPGD([w], lr=1.0, weight_decay=0.0, **optimizer_options).step()
    return -2 * w.detach() - grad


def test_noise_is_gaussian_white_and_of_the_right_size():
    xi = noise_of({"sigma": 0.3}, grad=0.7)
    # thresholds: five standard errors, and a chance of 1e-6 for the distribution test
    assert abs(xi.mean()) < 5 * 0.3 / math.sqrt(len(xi))
    assert xi.std().item() == pytest.approx(0.3, rel=5 / math.sqrt(2 * len(xi)))
    assert stats.kstest(xi.numpy() / 0.3, "norm").pvalue > 1e-6
    for lag in (1, 2, 16, 624):
        correlation = (xi[lag:] * xi[:-lag]).mean() / 0.09
        assert abs(correlation) < 5 / math.sqrt(len(xi))


def test_adaptive_noise_keeps_its_ratio_to_the_gradient():
    """As scaling of gradients by a VGS needs: "rms" at any size, "norm" grows with sqrt(numel)."""
    for factor in (1.0, 0.1, 1e-3):
        for count in (100, 40_000):
            options = {"sigma": 0.2, "adaptive_noise": True, "min_noise_std": 0.0}
            xi = noise_of(options, grad=factor, count=count)
            assert (xi.std() / factor).item() == pytest.approx(0.2, rel=5 / math.sqrt(2 * count))
            xi = noise_of({**options, "noise_reference": "norm"}, grad=factor, count=count)
            ratio = (xi.std() / factor).item() / math.sqrt(count)
            assert ratio == pytest.approx(0.2, rel=5 / math.sqrt(2 * count))


def test_adam_directions_need_a_fixed_sigma_to_keep_the_ratio():
    """Scaling gradients leaves an Adam step alone: with a fixed sigma its noise too."""

    def step(factor: float, adaptive: bool) -> Tensor:
        w = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
        w.grad = torch.linspace(-1, 1, 1000, dtype=torch.float64) * factor
        options = {"sigma": 0.2, "eps": 1e-30, "adaptive_noise": adaptive, "weight_decay": 0.0}
        OPTIMIZERS["adaptive"]([w], lr=1.0, **options).step()
        return w.detach()

    torch.testing.assert_close(step(0.1, adaptive=False), step(1.0, adaptive=False))
    signal = -torch.linspace(-1, 1, 1000, dtype=torch.float64).sign() / 2
    loud, faint = step(1.0, adaptive=True) - signal, step(0.1, adaptive=True) - signal
    assert (loud.std() / faint.std()).item() == pytest.approx(10, rel=1e-6)


# five norms of 1 and one of 0.1, weighted by powers of 0.9 that sum to 1
AVERAGE = (0.9 * (1 - 0.9**5) + 0.1 * 0.1) / (1 - 0.9**6)


@pytest.mark.parametrize(("instant", "std"), [(True, 0.1), (False, AVERAGE)])
def test_average_norm_follows_a_scaled_gradient_slowly(instant, std):
    """What ``instant_noise_scale`` is for."""
    w = torch.zeros(100_000, dtype=torch.float64, requires_grad=True)
    options = {"sigma": 1.0, "adaptive_noise": True, "noise_beta": 0.9}
    optimizer = UPGD([w], lr=0.0, weight_decay=0.0, instant_noise_scale=instant, **options)
    w.grad = torch.ones_like(w)
    for _ in range(5):
        optimizer.step()
    w.grad *= 0.1
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    xi = -2 * w.detach() - 0.1
    assert xi.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * len(w)))
