"""What the variance gradient scaler costs, as ratios to a step of AdamW(foreach): ``make bench``.

``scale_gradients()`` and ``step()`` together, after warmup and with a factor below 1, so that the
gradient is read and scaled.  ``--threads`` and ``--sizes`` choose; ``--check`` fails on a bar.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from interleaved import SIZES, medians, report, set_gradients
from torch import Tensor

from gqc.scalers import VarianceGradientScaler

BARS = {  # of an AdamW step at 10M parameters
    "sketch": 0.15,
    "elementwise": 0.7,
}
WIDTHS = {"0.1M": (56, 2), "1M": (160, 3), "10M": (480, 3)}  # of a transformer: width, layers


def make_parameters(size: str) -> list[Tensor]:
    """The tensors of a GPT with a vocabulary that brings it to the stated size."""
    width, layers = WIDTHS[size]
    block = [(3 * width, width), (3 * width,), (width, width), (width,), (4 * width, width)]
    block += [(4 * width,), (width, 4 * width), *[(width,)] * 5]
    per_block = 12 * width**2 + 13 * width
    shapes = [((SIZES[size] - layers * per_block) // width, width), *block * layers]
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def restorers(params: list[Tensor]) -> Iterator[Callable[[], None]]:
    """For each contestant one that sets two gradients in turn, so that there is a variance."""
    kept = []
    for seed in (1, 2):
        set_gradients(params, seed)
        kept.append([p.grad.clone() for p in params if p.grad is not None])

    def prepare(turns: Iterator[list[Tensor]]) -> None:
        for param, grad in zip(params, next(turns), strict=True):
            assert param.grad is not None
            param.grad.copy_(grad)

    return (functools.partial(prepare, itertools.cycle(kept)) for _ in itertools.count())


def bench(size: str, rounds: int) -> dict[str, float]:
    params = make_parameters(size)
    restore = restorers(params)
    optimizer = torch.optim.AdamW(params, lr=1e-9, foreach=True)
    grads = [p.grad for p in params if p.grad is not None]
    contestants: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "AdamW(foreach)": (next(restore), optimizer.step),
        "one batched norm": (next(restore), lambda: torch._foreach_norm(grads)),
        "one batched scaling": (next(restore), lambda: torch._foreach_mul_(grads, 0.9)),
    }
    scalers = {}
    for name, options in {
        "sketch": {"estimator": "sketch"},
        "elementwise": {"estimator": "elementwise"},
        "element by element": {"estimator": "elementwise", "granularity": "element"},
        "mean_square (published)": {"estimator": "mean_square"},
        "disabled": {"enabled": False},
    }.items():
        scaler = VarianceGradientScaler(params, warmup_steps=0, **options)
        scalers[name] = scaler
        contestants[name] = (next(restore), lambda s=scaler: (s.scale_gradients(), s.step()))
    seconds = medians(contestants, rounds)
    for name, scaler in scalers.items():
        if scaler.enabled and not scaler.get_scaling_factor() < 1:
            raise RuntimeError(f"{name} did not scale: the time is not the one that was meant")
    numel = sum(p.numel() for p in params)
    title = f"{numel:,} parameters, {len(params)} tensors, {torch.get_num_threads()} threads"
    return report(title, seconds, "AdamW(foreach)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    missed = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for size in arguments.sizes:
            ratios = bench(size, rounds=25 if size == "10M" else 100)
            if size == "10M":
                missed += [f"{k} {ratios[k]:.3f}" for k, bar in BARS.items() if ratios[k] > bar]
    if arguments.check and missed:
        raise SystemExit(f"above the bar of {BARS}: {missed}")


if __name__ == "__main__":
    main()
