"""Optimizers of torch and of pytorch-optimizer inside a wrapper: as if accumulated by hand."""

from __future__ import annotations

import inspect

import pytest
import torch
from interop.loops import accumulate_by_hand, batches, equal, model
from torch.nn import functional as F

import gqc

REFUSED = {"LBFGS", "SparseAdam"}  # below: a closure, sparse gradients
SETTINGS = {
    "SGD": {"lr": 0.1},
    "SGD, momentum": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "AdamW, fused": {"lr": 0.01, "fused": True},
    "AdamW, foreach": {"lr": 0.01, "foreach": True},
    "Adam, amsgrad, maximize": {"lr": 0.01, "amsgrad": True, "maximize": True},
    **{
        name: {} for name in ("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax")
    },
    **{name: {} for name in ("Muon", "NAdam", "RAdam", "RMSprop", "Rprop")},
}


def trained(kind: str, net: torch.nn.Module) -> list[torch.Tensor]:
    """Muon takes matrices only."""
    return [p for p in net.parameters() if kind != "Muon" or p.ndim == 2]


def compare(make, num_draws: int = 4) -> torch.nn.Module:
    """The same run with the wrapper and by hand; they must agree bit for bit."""
    ours, by_hand = model(), model()
    wrapper = gqc.OptimizerWrapperSBC(make(ours), 1, num_draws)
    for number, (x, y) in enumerate(batches(12 * num_draws), start=1):
        F.cross_entropy(ours(x), y).backward()
        assert wrapper.step() is (number % num_draws == 0)
    accumulate_by_hand(by_hand, make(by_hand), batches(12 * num_draws), num_draws)
    assert equal(ours, by_hand)
    assert not equal(ours, model())
    return ours


def test_every_optimizer_of_torch_is_here():
    known = {
        name
        for name, kind in inspect.getmembers(torch.optim, inspect.isclass)
        if issubclass(kind, torch.optim.Optimizer) and name != "Optimizer"
    }
    assert {name.split(",")[0] for name in SETTINGS} | REFUSED == known


@pytest.mark.parametrize("name", SETTINGS)
def test_torch_optimizer(name):
    kind = name.split(",")[0]
    compare(lambda net: getattr(torch.optim, kind)(trained(kind, net), **SETTINGS[name]))


def test_lbfgs_is_refused_since_a_window_has_no_loss_to_evaluate_again():
    net = model()
    with pytest.raises(TypeError, match="LBFGS cannot be wrapped: its step evaluates the loss"):
        gqc.OptimizerWrapperGNTS(torch.optim.LBFGS(net.parameters()))


def test_the_sparse_gradients_of_sparse_adam_are_refused():
    table = torch.nn.Embedding(5, 2, sparse=True)
    wrapper = gqc.OptimizerWrapperGNTS(torch.optim.SparseAdam(list(table.parameters())))
    table(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(TypeError, match="sparse gradient: expected a dense one"):
        wrapper.step()


@pytest.mark.parametrize("name", ["Lion", "AdaBelief", "AdEMAMix"])
def test_pytorch_optimizer(name):
    package = pytest.importorskip("pytorch_optimizer")
    compare(lambda net: getattr(package, name)(net.parameters(), lr=1e-3))
