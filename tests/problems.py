"""Small problems with known answers, and gradient streams whose truth is known."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES = ((3, 4), (5,), (2, 2, 2))


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Three parameters of different shapes, ready to be given to an optimizer."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES]


def stream(num: int, noise: float = 2.0, seed: int = 1) -> list[list[Tensor]]:
    """``num`` microbatch gradients: a mean that drifts slowly, plus Gaussian noise."""
    generator = torch.Generator().manual_seed(seed)
    mean = [torch.randn(shape, generator=generator) for shape in SHAPES]
    draws = []
    for i in range(num):
        mean = [0.97 * m for m in mean]
        scale = noise * (1 + i % 3)
        draws.append([m + scale * torch.randn(m.shape, generator=generator) for m in mean])
    return draws


def backward(params: list[Tensor], grads: list[Tensor | None]) -> None:
    """Autograd itself, with the gradients given."""
    pairs = [(p, g.to(p.dtype)) for p, g in zip(params, grads, strict=True) if g is not None]
    if pairs:
        torch.autograd.backward([p for p, _ in pairs], [g for _, g in pairs])


def global_norm(grads: list[Tensor]) -> float:
    """Element by element in float64, from the definition."""
    return sum(float(x) ** 2 for g in grads for x in g.double().flatten()) ** 0.5


def mean_of(window: list[list[Tensor]]) -> list[Tensor]:
    """The mean gradient of a window of draws, in float64."""
    return [sum(d[k].double() for d in window) / len(window) for k in range(len(window[0]))]


def quadratic(x: Tensor) -> Tensor:
    """Minimum 0 at the origin, condition number 10."""
    return (torch.linspace(1, 10, x.numel(), dtype=x.dtype) * x.flatten() ** 2).sum() / 2


def rosenbrock(x: Tensor) -> Tensor:
    """Minimum 0 at (1, 1), at the end of a curved valley."""
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def metric(i: int) -> float:
    return 1.0 + 0.1 * (i % 3) + 0.05 * (i % 7)


def train_slowly(case, optimizer, params: list[Tensor], draws: list[list[Tensor]]) -> list[bool]:
    """Step ``optimizer`` where the slow reference of ``case`` does; returns its decisions."""
    decide, expected, window, metrics = case.reference(), [], [], []
    for i, grads in enumerate(draws):
        window.append(grads)
        metrics.append(metric(i))
        expected.append(decide(window, metrics))
        if expected[-1]:
            for param, grad in zip(params, case.changes(mean_of(window)), strict=True):
                param.grad = grad
            optimizer.step()
            window, metrics = [], []
    return expected
