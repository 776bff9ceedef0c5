"""A small real model, its data, and gradient accumulation written by hand, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]


def model(dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Module:
    """Two layers with weights of their own generator; the global stream is not touched."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        net = torch.nn.Sequential(
            torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)
        ).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator))
    return net


def batches(num: int, size: int = 8, seed: int = 1) -> list[Batch]:
    """Inputs and the classes that a fixed linear rule gives them."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randn(6, 3, generator=generator)
    inputs = [torch.randn(size, 6, generator=generator) for _ in range(num)]
    return [(x, (x @ rule).argmax(1)) for x in inputs]


def accumulate_by_hand(
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Iterable[Batch],
    num_draws: int,
    each: Callable[[], Any] = lambda: None,
) -> None:
    """Mean of ``num_draws`` gradients, one step; ``each`` is called once a microbatch."""
    for number, (x, y) in enumerate(data, start=1):
        F.cross_entropy(net(x), y).backward()
        if number % num_draws == 0:
            for p in net.parameters():
                if p.grad is not None:
                    p.grad /= num_draws
            optimizer.step()
            optimizer.zero_grad()
        each()


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
