"""What a wrapper costs, as ratios to torch AdamW and to the peer: ``make bench``.

A draw that does not step is compared with one batched norm and its host sync, with a buffer plus
one batched add to a sum apart; a step with the wrapped step plus norm plus scaling.  The peer sums
in ``.grad``.  All find what a backward has just left in memory and caches.
``--threads`` and ``--sizes`` choose.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import gradient_quality_control as peer
import torch
from gradient_quality_control.implementations.metric_hypothesis_test import (
    OptimizerWrapperMHT as PeerMHT,
)
from interleaved import SIZES, make_parameters, medians, report, set_gradients

import gqc
from gqc.gradients import divide_, total_norm

ENDLESS = 10**9
METRICS = {"mht"}
WEIGHTED = {"gnts, weighted"}
PLAIN = {"AdamW(foreach)", "AdamW(fused)", "parts"}


def adamw(params, **kwargs) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-9, **kwargs)


def scheduled(wrapper, **values) -> Any:
    """The peer takes its tunables through the param groups only."""
    for group in wrapper.param_groups:
        group.update(values)
    return wrapper


# name -> (ours, the peer's), each at a setting that waits or that steps at once
WAITING: dict[str, tuple[Callable, Callable | None]] = {
    "gnts": (
        lambda o: gqc.OptimizerWrapperGNTS(o, 1e-30, max_draws=ENDLESS, accumulate="grad"),
        lambda o: scheduled(
            peer.OptimizerWrapperGNTS(o, max_batch_draws=ENDLESS), gradient_norm_threshold=1e-30
        ),
    ),
    "gnts, buffer": (lambda o: gqc.OptimizerWrapperGNTS(o, 1e-30, max_draws=ENDLESS), None),
    "gnts, weighted": (lambda o: gqc.OptimizerWrapperGNTS(o, 1e-30, max_draws=ENDLESS), None),
    "sbc, buffer": (lambda o: gqc.OptimizerWrapperSBC(o, 1, ENDLESS), None),
    "sbc": (
        lambda o: gqc.OptimizerWrapperSBC(o, 1, ENDLESS, accumulate="grad"),
        lambda o: scheduled(
            peer.OptimizerWrapperSBC(o, 1, max_batch_draws=ENDLESS), logical_batch_size=ENDLESS
        ),
    ),
    "gns": (
        lambda o: gqc.OptimizerWrapperGNS(o, 1e-30, max_draws=ENDLESS),
        lambda o: scheduled(
            peer.OptimizerWrapperGNS(o, max_batch_draws=ENDLESS), gradient_noise_scale=1e30
        ),
    ),
    "normtest": (lambda o: gqc.OptimizerWrapperNormTest(o, 1e-30, max_draws=ENDLESS), None),
    "mht": (
        lambda o: gqc.OptimizerWrapperMHT(
            o, max_draws=ENDLESS, error_tolerance=1e-30, accumulate="grad"
        ),
        lambda o: scheduled(
            PeerMHT(o, max_batch_draws=ENDLESS),
            confidence_level=0.98,
            percent_error_threshold=1e-30,
        ),
    ),
}
STEPPING: dict[str, tuple[Callable, Callable | None]] = {
    "gnts": (
        lambda o: gqc.OptimizerWrapperGNTS(o, 1e30),
        lambda o: scheduled(peer.OptimizerWrapperGNTS(o), gradient_norm_threshold=1e30),
    ),
    "sbc": (
        lambda o: gqc.OptimizerWrapperSBC(o, 1, 1),
        lambda o: scheduled(peer.OptimizerWrapperSBC(o, 1), logical_batch_size=1),
    ),
    "gnr": (gqc.OptimizerWrapperGNR, peer.OptimizerWrapperGNR),
    "gnr independent": (lambda o: gqc.OptimizerWrapperGNR(o, 1.0, "independent"), None),
}


def bench(numel: int, rounds: int) -> None:
    kept: dict[str, tuple[list, list]] = {}

    def optimizer(name: str, **kwargs) -> torch.optim.Optimizer:
        params = make_parameters(numel)
        set_gradients(params)
        kept[name] = (params, [p.grad for p in params])
        for param in params if name not in PLAIN else ():
            param.grad = None
        return adamw(params, **(kwargs or {"foreach": True}))

    def restore(name: str) -> Callable[[], None]:
        turns = itertools.count()

        def run() -> None:
            # The noise-driven ones keep the tensor, and step at once unless draws differ.
            differ = name.endswith(("gns draw", "normtest draw"))
            sign = 1 - 2 * (next(turns) % 2)
            params, grads = kept[name]
            if name in PLAIN:
                for param, grad in zip(params, grads, strict=True):
                    param.grad = grad
            else:  # what a backward makes, added to .grad where it waits
                torch.autograd.backward(params, [sign * g for g in grads] if differ else grads)

        return run

    def batched_norm() -> None:
        grads = [p.grad for p in kept["norm"][0] if p.grad is not None]
        torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))).item()

    def norm_and_add() -> None:
        grads = [p.grad for p in kept["norm + add"][0] if p.grad is not None]
        torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))).item()
        torch._foreach_add_(grads, held)  # into the new memory, as a buffer does
        held[:] = grads
        for param in kept["norm + add"][0]:
            param.grad = None

    def parts() -> None:
        grads = [p.grad for p in kept["parts"][0]]
        total_norm(grads).item()
        divide_(grads, 1.0000001)
        inner.step()

    contestants = {}
    for name, kwargs in (("AdamW(foreach)", {"foreach": True}), ("AdamW(fused)", {"fused": True})):
        contestants[name] = (restore(name), optimizer(name, **kwargs).step)
    inner = optimizer("parts")
    optimizer("norm"), optimizer("norm + add")
    held = [torch.zeros_like(p) for p in kept["norm"][0]]
    contestants["norm"] = (restore("norm"), batched_norm)
    contestants["norm + add"] = (restore("norm + add"), norm_and_add)
    contestants["parts"] = (restore("parts"), parts)
    for kind, table in (("draw", WAITING), ("step", STEPPING)):
        for name, makers in table.items():
            for who, make in zip(("", "peer "), makers, strict=True):
                if make is None:
                    continue
                title = f"{who}{name} {kind}"
                wrapper = make(optimizer(title))
                metric = iter(range(10**9))
                step = wrapper.step
                if name in METRICS:
                    contestants[title] = (
                        restore(title),
                        lambda s=step, m=metric: s(metric=1.0 + next(m) % 3),
                    )
                elif name in WEIGHTED:
                    contestants[title] = (
                        restore(title),
                        lambda s=step, m=metric: s(weight=1 + next(m) % 3),
                    )
                elif title == "peer gns draw":
                    contestants[title] = (restore(title), hooked(kept[title][0], step))
                else:
                    contestants[title] = (restore(title), step)
    seconds = medians(contestants, rounds)
    title = f"{numel:,} parameters in 50 tensors, {torch.get_num_threads()} threads"
    report(title + " (times, ratios to AdamW(foreach))", seconds, "AdamW(foreach)")
    print("  ratios that matter:")
    for name in WAITING:
        has_buffer = name in ("gns", "normtest") or "," in name
        base = "norm + add" if has_buffer else "norm"
        against(seconds, f"{name} draw", base)
    for name in STEPPING:
        against(seconds, f"{name} step", "parts")


def hooked(params: list, step: Callable[[], Any]) -> Callable[[], None]:
    """The peer's GNS takes a norm in a hook of every parameter during backward."""

    def run() -> None:
        for param in params:
            param._last_grad_norm = param.grad.norm()
        step()

    return run


def against(seconds: dict[str, float], name: str, base: str) -> None:
    ours, theirs = seconds[name], seconds.get(f"peer {name}")
    line = f"  {name:22s} / {base:10s} {ours / seconds[base]:6.2f}"
    print(line + (f"   / the peer's {ours / theirs:6.2f}" if theirs else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    arguments = parser.parse_args()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for size in arguments.sizes:
            bench(SIZES[size], rounds=150 if SIZES[size] < 5_000_000 else 30)


if __name__ == "__main__":
    main()
