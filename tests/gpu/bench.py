"""What wrappers, scaler and UPGD cost beside the training of a GPT of 10M and of 124M parameters.

Each contestant trains the model itself, so that gradients are where a backward leaves them.  Its
``step`` is timed alone, between two waits for the card, and compared with AdamW(fused)'s and with
forward and backward.  The last part times whole loops, without a wait but those of the wrapper: a
host that waits for a norm cannot queue the next forward, which a timed step does not show.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

import gqc
from gqc.upgd import UPGD, UPGDW, AdaptiveUPGD
from gqc_lab.models.gpt import GPT, GPTConfig, count_parameters, make_gpt

ENDLESS = 10**9
Make = Callable[[list[torch.Tensor]], Any]

SIZES = {  # name -> config, sequences of a microbatch
    "rehearsal": (GPTConfig(vocabulary=64, context=16, width=32, depth=1, heads=2), 2),
    "10M": (GPTConfig(vocabulary=8192, context=512, width=320, depth=6, heads=5), 16),
    "124M": (GPTConfig(vocabulary=50257, context=1024, width=768, depth=12, heads=12), 8),
}


def fused(params, **options) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-9, fused=True, **options)


def wrapped(kind: type, *args: Any, **options: Any) -> Make:
    return lambda params: kind(fused(params), *args, **options)


OPTIMIZERS: dict[str, Make] = {
    "AdamW(fused)": fused,
    "AdamW(foreach)": lambda params: torch.optim.AdamW(params, lr=1e-9, foreach=True),
    "UPGD": lambda params: UPGD(params, lr=1e-9),
    "AdaptiveUPGD": lambda params: AdaptiveUPGD(params, lr=1e-9),
    "UPGDW": lambda params: UPGDW(params, lr=1e-9),
    "UPGDW, no noise": lambda params: UPGDW(params, lr=1e-9, sigma=0.0),
}
WAITING: dict[str, Make] = {  # these never step
    "gnts": wrapped(gqc.OptimizerWrapperGNTS, 1e-30, max_draws=ENDLESS),
    "gnts in .grad": wrapped(gqc.OptimizerWrapperGNTS, 1e-30, max_draws=ENDLESS, accumulate="grad"),
    "sbc": wrapped(gqc.OptimizerWrapperSBC, 1, ENDLESS),
    "sbc in .grad": wrapped(gqc.OptimizerWrapperSBC, 1, ENDLESS, accumulate="grad"),
    "gns": wrapped(gqc.OptimizerWrapperGNS, 1e-30, max_draws=ENDLESS),
    "normtest": wrapped(gqc.OptimizerWrapperNormTest, 1e-30, max_draws=ENDLESS),
    "mht": wrapped(gqc.OptimizerWrapperMHT, error_tolerance=1e-30, max_draws=ENDLESS),
}
STEPPING: dict[str, Make] = {  # these step with every draw
    "gnts": wrapped(gqc.OptimizerWrapperGNTS, 1e30),
    "gnts in .grad": wrapped(gqc.OptimizerWrapperGNTS, 1e30, accumulate="grad"),
    "sbc": wrapped(gqc.OptimizerWrapperSBC, 1, 1),
    "gnr": wrapped(gqc.OptimizerWrapperGNR),
    "gnr independent": wrapped(gqc.OptimizerWrapperGNR, 1.0, "independent"),
    "vgs": wrapped(gqc.OptimizerWrapperVGS, warmup_steps=0),
    "vgs elementwise": wrapped(gqc.OptimizerWrapperVGS, warmup_steps=0, estimator="elementwise"),
}
LOOPS: dict[str, Make] = {  # windows of 4, once chosen by hand and once by a wrapper
    "AdamW(fused)": fused,
    "sbc": wrapped(gqc.OptimizerWrapperSBC, 1, 4),
    "gnts": wrapped(gqc.OptimizerWrapperGNTS, 1e-30, max_draws=4),
    "gns": wrapped(gqc.OptimizerWrapperGNS, 1e-30, max_draws=4),
    "vgs in sbc": lambda params: gqc.OptimizerWrapperSBC(
        gqc.OptimizerWrapperVGS(fused(params), warmup_steps=0), 1, 4
    ),
}


class Training:
    """Forward and backward of a GPT on fixed random tokens, in bfloat16 autocast."""

    def __init__(self, size: str, device: torch.device) -> None:
        config, sequences = SIZES[size]
        self.device = device
        self.net: GPT = make_gpt(config, torch.Generator().manual_seed(0)).to(device)
        generator = torch.Generator().manual_seed(1)
        shape = (sequences, config.context + 1)
        tokens = torch.randint(config.vocabulary, shape, generator=generator)
        self.tokens = tokens.to(device)

    @property
    def params(self) -> list[torch.Tensor]:
        return list(self.net.parameters())

    def backward(self) -> torch.Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            logits = self.net(self.tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), self.tokens[:, 1:].flatten())
        loss.backward()
        return loss.detach()

    def clear(self) -> None:
        for param in self.params:
            param.grad = None

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def seconds_of(training: Training, run: Callable[[], object], prepare, rounds: int) -> float:
    """Median of ``run`` alone; ``prepare`` comes before each."""
    times = []
    for turn in range(rounds + 5):
        prepare()
        training.wait()
        start = time.perf_counter()
        run()
        training.wait()
        if turn >= 5:  # the first ones allocate
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def step_seconds(training: Training, make: Make, name: str, rounds: int) -> float:
    """Of one ``step`` after a backward."""
    training.clear()
    optimizer = make(training.params)
    metric = {"metric": 1.0} if name == "mht" else {}
    is_plain = not isinstance(optimizer, gqc.OptimizerWrapper)

    def prepare() -> None:
        if is_plain:
            optimizer.zero_grad()
        training.backward()

    return seconds_of(training, lambda: optimizer.step(**metric), prepare, rounds)


def loop_seconds(training: Training, make: Make, rounds: int) -> float:
    """Of 12 microbatches in windows of 4."""
    training.clear()
    optimizer = make(training.params)
    is_plain = not isinstance(optimizer, gqc.OptimizerWrapper)

    def loop() -> None:
        for number in range(1, 13):
            training.backward()
            if not is_plain:
                optimizer.step()
            elif number % 4 == 0:
                torch._foreach_div_([p.grad for p in training.params], 4)
                optimizer.step()
                optimizer.zero_grad()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a threshold that cannot be met makes all windows equal
        return seconds_of(training, loop, lambda: None, max(2, rounds // 4))


def bench(size: str, device: torch.device, rounds: int = 20) -> dict[str, Any]:
    """Milliseconds, and shares of AdamW(fused) and of forward and backward."""
    training = Training(size, device)
    numel = count_parameters(training.net)
    backward = seconds_of(training, training.backward, training.clear, rounds)
    rows: dict[str, float] = {}
    tables = (("", OPTIMIZERS), (" draw", WAITING), (" step", STEPPING))
    for suffix, table in tables:
        for name, make in table.items():
            rows[name + suffix] = step_seconds(training, make, name, rounds)
    adamw = rows["AdamW(fused)"]
    again = step_seconds(training, fused, "AdamW(fused)", rounds)
    loops = {name: loop_seconds(training, make, rounds) for name, make in LOOPS.items()}
    plain = loops["AdamW(fused)"]
    return {
        "parameters": numel,
        "tokens of a microbatch": training.tokens[:, 1:].numel(),
        "forward and backward [ms]": 1e3 * backward,
        "AdamW(fused) at the end, over that at the start": again / adamw,
        "step": {
            name: {
                "ms": 1e3 * t,
                "over AdamW(fused)": t / adamw,
                "over forward and backward": t / backward,
            }
            for name, t in rows.items()
        },
        "loop over the loop by hand": {name: t / plain for name, t in loops.items()},
    }
