"""Ratios that hold on a noisy machine: contestants take turns, medians are compared."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

SIZES = {"0.1M": 100_000, "1M": 1_000_000, "10M": 10_000_000}


def make_parameters(numel: int, num_tensors: int = 50) -> list[Tensor]:
    """A model's worth of tensors: many small, few large, as in a transformer."""
    generator = torch.Generator().manual_seed(0)
    weights = [4 if i % 5 == 0 else 1 if i % 5 == 1 else 0.02 for i in range(num_tensors)]
    sizes = [max(1, int(numel * w / sum(weights))) for w in weights]
    return [torch.randn(n, generator=generator).requires_grad_() for n in sizes]


def set_gradients(params: list[Tensor], seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def medians(
    contestants: dict[str, tuple[Callable[[], None], Callable[[], None]]], rounds: int
) -> dict[str, float]:
    """Median seconds of each ``(prepare, run)``; only ``run`` is timed, one of each per round."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for prepare, run in contestants.values():  # warm up
        for _ in range(3):
            prepare()
            run()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, (prepare, run) in contestants.items():
                prepare()
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, seconds: dict[str, float], baseline: str) -> dict[str, float]:
    """Print each contestant as microseconds and as a ratio to ``baseline``."""
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:42s} {value * 1e6:10.1f} us  {value / seconds[baseline]:6.3f}")
    return {name: value / seconds[baseline] for name, value in seconds.items()}
