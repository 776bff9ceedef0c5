"""Faults of torch-gqc 0.10.4 in what GNS, MHT and GNR compute, each measured: its answer and ours.

Nothing is asserted here: ``test_differences.py`` does that, ``differences.py`` makes a table of it.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import gradient_quality_control as peer
import torch
from gradient_quality_control.implementations.metric_hypothesis_test import OptimizerWrapperMHT
from peer.both import backward, outcome, scalar
from torch import Tensor
from torch.optim import SGD

import gqc


@functools.cache
def noise_scale(dimension: int = 10_000, truth: float = 100.0) -> tuple[float, float | None]:
    """Both estimates on a stream whose tr(Sigma) / |G|^2 is known."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(dimension, generator=generator)
    signal /= signal.norm()
    deviation = math.sqrt(truth / dimension)
    theirs, mine = (torch.zeros(dimension, requires_grad=True) for _ in range(2))
    published = peer_gns(theirs, window=32)
    ours = gqc.OptimizerWrapperGNS(SGD([mine], lr=0.0), 1e-12, max_draws=32)
    value = math.nan
    for number in range(32 * 40):
        grad = signal + deviation * torch.randn(dimension, generator=generator)
        if number < 32:
            (theirs * grad).sum().backward()
            value = gns_after(published)
        (mine * grad).sum().backward()
        ours.step()
    return value, ours.statistics()["noise_scale"]


def peer_gns(param: Tensor, window: int) -> Any:
    wrapper = peer.OptimizerWrapperGNS(SGD([param], lr=0.0), max_batch_draws=window + 1)
    wrapper.param_groups[0]["noise_tolerance"] = 0.0  # keeps the window open
    return wrapper


def gns_after(wrapper: Any) -> float:
    """The peer's estimate with this draw; of one draw it is NaN, and torch warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"var\(\): degrees of freedom")
        wrapper.step()
        return float(wrapper.compute_approximate_gns())


def gns_scale_invariance() -> tuple[float, float]:
    """The estimate after dividing all gradients by 2^20, over that before; 1 is right."""

    def theirs(scale: float) -> float:
        param = scalar()
        wrapper, value = peer_gns(param, window=16), math.nan
        for i in range(16):
            backward(param, scale * (1.0 + 0.1 * (i % 3)))
            value = gns_after(wrapper)
        return value

    def mine(scale: float) -> float:
        param = scalar()
        wrapper = gqc.OptimizerWrapperGNS(SGD([param], lr=0.0), 1e-12, max_draws=16)
        for i in range(16):
            backward(param, scale * (1.0 + 0.1 * (i % 3)))
            wrapper.step()
        return float(wrapper.statistics()["noise_scale"])

    return theirs(2**-20) / theirs(1.0), mine(2**-20) / mine(1.0)


def gns_unused_parameter() -> tuple[str, str]:
    def run(make: Callable[[SGD], Any]) -> str:
        used, unused = scalar(), scalar()
        wrapper = make(SGD([used, unused], lr=1.0))
        backward(used, 1.0)
        return outcome(wrapper.step, "works")

    return run(peer.OptimizerWrapperGNS), run(gqc.OptimizerWrapperGNS)


def gns_frozen_parameter() -> tuple[str, str]:
    def run(make: Callable[[SGD], Any]) -> str:
        optimizer = SGD([scalar(), torch.zeros(1)], lr=1.0)
        return outcome(lambda: make(optimizer), "works")

    return run(peer.OptimizerWrapperGNS), run(gqc.OptimizerWrapperGNS)


def mht_draws(
    metrics: Iterable[float], confidence: float | None, tolerance: float | None
) -> tuple[int | None, int | None]:
    """Draws of the first window; None keeps a default."""
    settings = {"confidence": confidence, "error_tolerance": tolerance}
    names = {"confidence": "confidence_level", "error_tolerance": "percent_error_threshold"}
    theirs, mine = scalar(), scalar()
    published = OptimizerWrapperMHT(SGD([theirs], lr=1.0))
    for key, value in settings.items():
        if value is not None:
            published.param_groups[0][names[key]] = value
    given = {key: value for key, value in settings.items() if value is not None}
    ours = gqc.OptimizerWrapperMHT(SGD([mine], lr=1.0), **given)

    def run(param: Tensor, step: Callable[[float], bool]) -> int | None:
        for number, metric in enumerate(metrics, start=1):
            backward(param, 1.0)
            if step(metric):
                return number
        return None

    return run(theirs, published.step), run(mine, lambda metric: ours.step(metric=metric))


def mht_default_confidence() -> tuple[int | None, int | None]:
    return mht_draws([1.0] * 64, None, None)


def mht_negative_metric() -> tuple[int | None, int | None]:
    return mht_draws([-1.0] * 64, 0.98, 0.1)


def mht_first_call() -> tuple[int | None, int | None]:
    return mht_draws([1.0, 3.0, *[2.0] * 62], 0.98, 0.5)


def gnr_zero_gradient() -> tuple[float, float]:
    """How far a zero gradient moves a parameter at 0.89 under momentum 0.9 and decay 0.1."""

    def run(make: Callable[[SGD], Any]) -> float:
        param = scalar(1.0)
        wrapper = make(SGD([param], lr=0.1, momentum=0.9, weight_decay=0.1))
        backward(param, 1.0)
        wrapper.step()
        before = float(param.detach())
        backward(param, 0.0)
        wrapper.step()
        return float(param.detach()) - before

    return run(peer.OptimizerWrapperGNR), run(gqc.OptimizerWrapperGNR)
