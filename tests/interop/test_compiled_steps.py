"""A compiled train step scales and perturbs as one that is not compiled."""

from __future__ import annotations

import pytest
import torch
from interop.loops import batches, equal, model
from torch.nn import functional as F

import gqc
from gqc.scalers import VarianceGradientScaler

pytestmark = [
    pytest.mark.slow,
    # torch's compiler looks at the .grad of the loss that is passed on, and torch 2.13's own import
    # of its compiler uses what it deprecates.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


def train(compiled, make, estimator=None):
    """The model, losses and metrics after 12 steps."""
    torch._dynamo.reset()
    net = model()
    optimizer = make(net.parameters())
    scaler = None
    if estimator:
        scaler = VarianceGradientScaler(net.parameters(), estimator=estimator, warmup_steps=3)

    def step(x, y):
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        if scaler is not None:
            scaler.scale_gradients()
        optimizer.step()
        if scaler is not None:
            scaler.step()
        optimizer.zero_grad()
        return loss.detach()

    run = torch.compile(step, backend="eager") if compiled else step
    losses = [run(x, y).item() for x, y in batches(12)]
    metrics = None if scaler is None else scaler.metrics()
    return net, losses, metrics


@pytest.mark.parametrize("make", [gqc.UPGD, gqc.AdaptiveUPGD, gqc.UPGDW])
def test_upgd(make):
    eager, compiled = (train(c, lambda p: make(p, lr=0.05, sigma=0.1)) for c in (False, True))
    assert equal(eager[0], compiled[0])
    assert eager[1] == compiled[1]


@pytest.mark.parametrize("estimator", ["sketch", "elementwise", "differences", "mean_square"])
def test_the_variance_scaler(estimator):
    eager, compiled = (
        train(c, lambda p: torch.optim.SGD(p, lr=0.1), estimator) for c in (False, True)
    )
    assert equal(eager[0], compiled[0])
    assert eager[2] == compiled[2]
    assert eager[2]["vgs/step_count"] == 12
    assert 0 < eager[2]["vgs/scaling_factor"] < 1
