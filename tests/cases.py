"""One row per optimizer wrapper: all of ``tests/wrappers/test_every_wrapper.py`` runs on each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from problems import global_norm, mean_of
from scipy import stats
from torch import Tensor
from torch.optim import Optimizer

import gqc

Window = list[list[Tensor]]
Decision = Callable[[Window, list[float]], bool]


@dataclass(frozen=True)
class Case:
    """How to make a wrapper, and what it should do, written from its formula.

    Attributes:
        make: the wrapper at settings that give windows of several lengths on ``problems.stream``.
        plain: the wrapper at its identity limit: equal draws are stepped with after one or two,
            whose mean is exact, so that it must be the bare optimizer bit for bit.  None where the
            gradient is changed.
        reference: makes the slow reference: the window's draws and metrics -> step now?  It is
            called once a draw, and a window is over when it says True.
        changes: the slow reference of the gradient that the optimizer sees, from the mean.
        bad: keyword arguments that must be refused, and a part of the message.
    """

    make: Callable[..., gqc.OptimizerWrapper]
    plain: Callable[[Optimizer], gqc.OptimizerWrapper] | None
    reference: Callable[[], Decision]
    changes: Callable[[list[Tensor]], list[Tensor]] = field(default=lambda mean: mean)
    bad: tuple[tuple[dict[str, Any], str], ...] = ()


REPLAYED = [1, 3, 2, 5, 1, 4] * 10


def gnts() -> Decision:
    return lambda window, metrics: global_norm(mean_of(window)) <= 10.0 or len(window) >= 6


def sbc() -> Decision:
    return lambda window, metrics: 4 * len(window) >= 13.0


def replay() -> Decision:
    rest = list(REPLAYED)

    def decide(window: Window, metrics: list[float]) -> bool:
        return len(window) == rest[0] and bool(rest.pop(0))

    return decide


def spread(window: Window) -> float:
    """The trace of the draws' sample covariance, from its definition."""
    mean = mean_of(window)
    squares = (
        global_norm([g.double() - m for g, m in zip(draw, mean, strict=True)]) ** 2
        for draw in window
    )
    return sum(squares) / (len(window) - 1)


def gns() -> Decision:
    past: list[tuple[float, float]] = []

    def decide(window: Window, metrics: list[float]) -> bool:
        n = len(window)
        weights = [0.95**age for age in reversed(range(len(past)))]
        signal = sum(w * s for w, (s, _) in zip(weights, past, strict=True))
        noise = max(sum(w * t for w, (_, t) in zip(weights, past, strict=True)), 0.0)
        known = signal > 0 and noise / signal <= 6.0 * n
        if n < 2 or not (n >= 6 or known):
            return False
        trace = spread(window)
        past.append((global_norm(mean_of(window)) ** 2 - trace / n, trace))
        return True

    return decide


def normtest() -> Decision:
    def decide(window: Window, metrics: list[float]) -> bool:
        n = len(window)
        if n < 2:
            return False
        noise = spread(window) / n
        return n >= 6 or noise <= 1.5**2 * (global_norm(mean_of(window)) ** 2 - noise)

    return decide


def mht() -> Decision:
    before: list[float] = []

    def decide(window: Window, metrics: list[float]) -> bool:
        n = len(window)
        average: list[float] = []
        for value in before:
            average = [value if not average else 0.99 * average[0] + 0.01 * value]
        samples = [*average, *metrics]
        if n < 2:
            return False
        mean = sum(samples) / len(samples)
        low, high = stats.t.interval(0.9, len(samples) - 1, mean, stats.sem(samples))
        stop = n >= 6 or (high - low) / 2 <= 0.09 * abs(mean)
        if stop:
            before.extend(metrics)
        return bool(stop)

    return decide


def rescaled(mean: list[Tensor]) -> list[Tensor]:
    return [g * 3.0 / global_norm(mean) for g in mean]


def rescaled_alone(mean: list[Tensor]) -> list[Tensor]:
    return [g * 3.0 / global_norm([g]) if global_norm([g]) else g for g in mean]


def gnr(mode: str, changes: Callable[[list[Tensor]], list[Tensor]]) -> Case:
    return Case(
        make=lambda opt, **kw: gqc.OptimizerWrapperGNR(opt, 3.0, mode, **kw),
        plain=None,
        reference=lambda: lambda window, metrics: True,
        changes=changes,
        bad=(
            ({"target_gradient_norm": 0.0}, "target_gradient_norm=0.0"),
            ({"mode": "layer"}, "mode='layer'"),
        ),
    )


CASES: dict[str, Case] = {
    "gnts": Case(
        make=lambda opt, **kw: gqc.OptimizerWrapperGNTS(opt, 10.0, **{"max_draws": 6, **kw}),
        plain=lambda opt: gqc.OptimizerWrapperGNTS(opt, 1e30),
        reference=gnts,
        bad=(
            ({"gradient_norm_threshold": 0.0}, "gradient_norm_threshold=0.0: expected a finite"),
            ({"gradient_norm_threshold": -1.0}, "gradient_norm_threshold=-1.0"),
            ({"gradient_norm_threshold": math.nan}, "gradient_norm_threshold=nan"),
        ),
    ),
    "gns": Case(
        make=lambda opt, **kw: gqc.OptimizerWrapperGNS(opt, 6.0, **{"max_draws": 6, **kw}),
        plain=lambda opt: gqc.OptimizerWrapperGNS(opt, max_draws=2),
        reference=gns,
        bad=(
            ({"noise_tolerance": 0.0}, "noise_tolerance=0.0"),
            ({"decay": 1.0}, "decay=1.0"),
            ({"min_draws": 1}, "min_draws=1: expected an integer >= 2"),
            ({"accumulate": "grad"}, 'accumulate="grad"'),
        ),
    ),
    "normtest": Case(
        make=lambda opt, **kw: gqc.OptimizerWrapperNormTest(opt, 1.5, **{"max_draws": 6, **kw}),
        plain=lambda opt: gqc.OptimizerWrapperNormTest(opt),
        reference=normtest,
        bad=(({"theta": math.nan}, "theta=nan"), ({"rhs": "paper"}, "rhs='paper'")),
    ),
    "mht": Case(
        make=lambda opt, **kw: gqc.OptimizerWrapperMHT(opt, 0.9, 0.09, **{"max_draws": 6, **kw}),
        plain=lambda opt: gqc.OptimizerWrapperMHT(opt, max_draws=2),
        reference=mht,
        bad=(
            ({"confidence": 1.0}, "confidence=1.0"),
            ({"confidence": math.nan}, "confidence=nan"),
            ({"error_tolerance": 0.0}, "error_tolerance=0.0"),
            ({"ema_alpha": 0.0}, "ema_alpha=0.0"),
        ),
    ),
    "sbc": Case(
        make=lambda opt, **kw: gqc.OptimizerWrapperSBC(opt, 4, 13.0, **kw),
        plain=lambda opt: gqc.OptimizerWrapperSBC(opt, 1, 1.0),
        reference=sbc,
        bad=(
            ({"physical_batch_size": 0, "logical_batch_size": 8}, "physical_batch_size=0"),
            ({"physical_batch_size": 4, "logical_batch_size": math.nan}, "logical_batch_size=nan"),
        ),
    ),
    "gnr": gnr("global", rescaled),
    "gnr_independent": gnr("independent", rescaled_alone),
    "vgs": Case(  # its factors have a suite of their own, tests/scalers
        make=lambda opt, **kw: gqc.OptimizerWrapperVGS(opt, **{"alpha": 0.0, **kw}),
        plain=lambda opt: gqc.OptimizerWrapperVGS(opt, alpha=0.0),
        reference=lambda: lambda window, metrics: True,
        bad=(({"alpha": -1.0}, "alpha=-1.0"), ({"beta": math.nan}, "beta=nan")),
    ),
    "replay": Case(
        make=lambda opt, **kw: gqc.OptimizerWrapperReplay(opt, REPLAYED, **kw),
        plain=lambda opt: gqc.OptimizerWrapperReplay(opt, [1], repeat_last=True),
        reference=replay,
        bad=(({"draws": []}, "at least one step"), ({"draws": [2, 0]}, "draws holds 0")),
    ),
}
