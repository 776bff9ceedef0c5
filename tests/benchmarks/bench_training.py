"""The share of a training step that each wrapper costs, on a GPT of 0.4M and 10M parameters.

A step is a real microbatch, forward and backward, and AdamW(foreach); what a wrapper costs is its
``step`` less that of the bare optimizer, on the same gradients.  Windows are as short as possible,
one draw or two, since longer ones save steps of the optimizer.  All take turns on one model.
``--threads``, ``--sizes`` and ``--rounds`` choose; ``--check`` fails on the bar.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

import gqc
from gqc_lab.models.gpt import GPTConfig, count_parameters, make_gpt

BAR = 0.01  # of a training step at 10M parameters
SIZES = {  # name -> config, sequences of a microbatch
    "0.4M": (GPTConfig(vocabulary=96, context=128, width=96, depth=3, heads=4), 16),
    "10M": (GPTConfig(vocabulary=8192, context=256, width=320, depth=6, heads=5), 8),
}


def adamw(params: list) -> Any:
    return torch.optim.AdamW(params, lr=1e-9, foreach=True)


PAIRS = ("gns", "normtest", "mht")  # one draw has no spread
WRAPPERS: dict[str, Callable[..., Any]] = {
    "gnts": lambda opt: gqc.OptimizerWrapperGNTS(opt, 1e30),
    "gnts in .grad": lambda opt: gqc.OptimizerWrapperGNTS(opt, 1e30, accumulate="grad"),
    "sbc": lambda opt: gqc.OptimizerWrapperSBC(opt, 1, 1),
    "gns": lambda opt: gqc.OptimizerWrapperGNS(opt, 1.0, max_draws=2),
    "normtest": lambda opt: gqc.OptimizerWrapperNormTest(opt, 1.0, max_draws=2),
    "mht": lambda opt: gqc.OptimizerWrapperMHT(opt, max_draws=2),
    "gnr": gqc.OptimizerWrapperGNR,
    "replay": lambda opt: gqc.OptimizerWrapperReplay(opt, [1], repeat_last=True),
    "vgs": lambda opt: gqc.OptimizerWrapperVGS(opt, warmup_steps=0),
}


def bench(size: str, rounds: int) -> dict[str, float]:
    """Print the shares, and return them."""
    config, sequences = SIZES[size]
    net = make_gpt(config, torch.Generator().manual_seed(0))
    params = list(net.parameters())
    shape = (sequences, config.context + 1)
    tokens = torch.randint(config.vocabulary, shape, generator=torch.Generator().manual_seed(1))
    contestants = {"adamw": adamw(params)} | {
        k: make(adamw(params)) for k, make in WRAPPERS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in ["model", *contestants]}
    for turn in range(rounds + 2):
        start = time.perf_counter()
        loss = F.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        grads = torch.autograd.grad(loss, params)
        if turn >= 2:  # the first ones allocate
            times["model"].append(time.perf_counter() - start)
        for name, optimizer in contestants.items():
            seconds = 0.0
            for _ in range(1 + (name in PAIRS)):
                torch.autograd.backward(params, grads)
                given = {"metric": loss.detach()} if name == "mht" else {}
                start = time.perf_counter()
                optimizer.step(**given)
                seconds += time.perf_counter() - start
            net.zero_grad()
            if turn >= 2:
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"\n{count_parameters(net):,} parameters, {shape[0] * config.context} tokens a microbatch, "
        f"{torch.get_num_threads()} threads: model {median['model'] * 1e3:.1f} ms, "
        f"AdamW(foreach) {median['adamw'] * 1e3:.2f} ms"
    )
    shares = {}
    for name in WRAPPERS:
        whole = median["model"] * (1 + (name in PAIRS)) + median["adamw"]
        shares[name] = (median[name] - median["adamw"]) / whole
        print(f"  {name:14s} {median[name] * 1e3:8.2f} ms  {shares[name]:7.2%} of a training step")
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    missed = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for size in arguments.sizes:
            shares = bench(size, arguments.rounds * (5 if size == "0.4M" else 1))
            if size == "10M":
                missed += [f"{k} {share:.2%}" for k, share in shares.items() if share > BAR]
    if arguments.check and missed:
        raise SystemExit(f"above {BAR:.0%}: {missed}")


if __name__ == "__main__":
    main()
