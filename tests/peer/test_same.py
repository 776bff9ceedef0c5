"""Differential suite: one random gradient stream through torch-gqc 0.10.4 and ours.

Decisions must be equal and parameters bit for bit the same: both add draw by draw, divide by n in
place and call the same optimizer.  The norm that GNTS and GNR read is summed in another order, so
it may differ in the last bits: a stream whose norm comes that close to the threshold decides
nothing about the algorithm and is drawn again, and GNR's gradients agree to those bits.
"""

from __future__ import annotations

import gradient_quality_control as peer
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import backward, global_norm, mean_of
from torch import Tensor

import gqc

INNER = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.02),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01),
}
# A float32 norm of up to 60 elements, in any order of summation, is off by at most 60 roundings of
# 2^-24 in its square (half of that in the norm), and one of the root: 2e-6.
NEAR = 2e-6

streams = st.fixed_dictionaries(
    {
        "shapes": st.lists(
            st.sampled_from([(1,), (7,), (3, 4), (2, 3, 2), (5, 1)]), min_size=1, max_size=5
        ),
        "num_groups": st.integers(1, 2),
        "length": st.integers(1, 40),
        "seed": st.integers(0, 2**31),
        "noise": st.floats(0.01, 10.0),
        "scale": st.sampled_from([1e-3, 1.0, 1e3]),
        "inner": st.sampled_from(sorted(INNER)),
    }
)


class Twins:
    """Equal parameters and optimizers for the two, and the gradients to feed them."""

    def __init__(self, shapes, num_groups, length, seed, noise, scale, inner) -> None:
        generator = torch.Generator().manual_seed(seed)
        start = [torch.randn(shape, generator=generator) for shape in shapes]
        mean = [torch.randn(shape, generator=generator) for shape in shapes]
        self.draws = [
            [scale * (m + noise * torch.randn(m.shape, generator=generator)) for m in mean]
            for _ in range(length)
        ]
        self.params: list[list[Tensor]] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        self.seen: list[list[list[Tensor]]] = [[], []]
        for seen in self.seen:
            params = [s.clone().requires_grad_() for s in start]
            cut = len(params) // 2 if num_groups == 2 else 0
            parts = [part for part in (params[:cut], params[cut:]) if part]
            optimizer = INNER[inner]([{"params": part} for part in parts])
            optimizer.register_step_pre_hook(recorder(params, seen))
            self.params.append(params)
            self.optimizers.append(optimizer)

    def feed(self, theirs, ours) -> tuple[list[bool], list[bool]]:
        decisions: tuple[list[bool], list[bool]] = ([], [])
        for grads in self.draws:
            for wrapper, params, stepped in zip(
                (theirs, ours), self.params, decisions, strict=True
            ):
                backward(params, grads)
                stepped.append(wrapper.step())
        return decisions

    def are_equal(self) -> bool:
        return all(torch.equal(a, b) for a, b in zip(*self.params, strict=True))


def recorder(params, seen):
    return lambda *_: seen.append([p.grad.clone() for p in params])


@pytest.mark.filterwarnings("ignore:10 windows in a row ran to max_draws:UserWarning")
@settings(deadline=None)
@given(stream=streams, share=st.floats(0.05, 1.5), max_draws=st.integers(1, 8))
def test_gnts_decides_and_steps_as_the_peer_does(stream, share, max_draws):
    twins = Twins(**stream)
    threshold = share * global_norm(twins.draws[0])
    theirs = peer.OptimizerWrapperGNTS(twins.optimizers[0], max_batch_draws=max_draws)
    for group in theirs.param_groups:
        group["gradient_norm_threshold"] = threshold
    ours = gqc.OptimizerWrapperGNTS(twins.optimizers[1], threshold, max_draws=max_draws)

    expected, window = [], []
    for grads in twins.draws:
        window.append(grads)
        norm = global_norm(mean_of(window))
        # the reference sums draws in float64: 8 roundings of terms that may be larger than the sum
        assume(abs(norm - threshold) > 10 * NEAR * threshold)
        expected.append(norm <= threshold or len(window) == max_draws)
        window = [] if expected[-1] else window
    assert twins.feed(theirs, ours) == (expected, expected)
    assert twins.are_equal()
    assert ours.statistics()["steps"] == theirs.num_steps
    assert ours.last_num_draws == theirs.last_num_draws


@settings(deadline=None)
@given(
    stream=streams,
    physical=st.integers(1, 5),
    sizes=st.lists(st.floats(0.5, 40.0), min_size=40, max_size=40),
    max_draws=st.integers(1, 8),
)
def test_sbc_follows_a_changing_batch_size_as_the_peer_does(stream, physical, sizes, max_draws):
    twins = Twins(**stream)
    theirs = peer.OptimizerWrapperSBC(twins.optimizers[0], physical, max_batch_draws=max_draws)
    ours = gqc.OptimizerWrapperSBC(twins.optimizers[1], physical, 1.0, max_draws=max_draws)
    expected, n = [], 0
    for grads, size in zip(twins.draws, sizes, strict=False):
        n += 1
        expected.append(n * physical >= size or n == max_draws)
        n = 0 if expected[-1] else n
        for wrapper, params in zip((theirs, ours), twins.params, strict=True):
            for group in wrapper.param_groups:
                group["logical_batch_size"] = size
            backward(params, grads)
            assert wrapper.step() is expected[-1]
    assert twins.are_equal()


@settings(deadline=None)
@given(stream=streams, target=st.floats(1e-3, 1e3))
def test_gnr_rescales_as_the_peer_does(stream, target):
    twins = Twins(**stream)
    theirs = peer.OptimizerWrapperGNR(twins.optimizers[0])
    for group in theirs.param_groups:
        group["target_gradient_norm"] = target
    ours = gqc.OptimizerWrapperGNR(twins.optimizers[1], target)
    decisions = twins.feed(theirs, ours)
    assert decisions == ([True] * len(twins.draws),) * 2
    for a, b, raw in zip(*twins.seen, twins.draws, strict=True):
        norm = global_norm(raw)
        for x, y, grad in zip(a, b, raw, strict=True):
            torch.testing.assert_close(x, y, rtol=NEAR, atol=0)
            # two more roundings: the factor's and the product's
            torch.testing.assert_close(
                y.double(), grad.double() * target / norm, rtol=2 * NEAR, atol=0
            )


def test_gnr_on_one_parameter_is_bitwise_the_peers():
    """One tensor leaves no order of summation over tensors: nothing is left to differ."""
    twins = Twins([(50,)], 1, 100, 0, 1.0, 1.0, "adamw")
    theirs = peer.OptimizerWrapperGNR(twins.optimizers[0])
    ours = gqc.OptimizerWrapperGNR(twins.optimizers[1])
    assert twins.feed(theirs, ours) == ([True] * 100,) * 2
    assert twins.are_equal()


def test_a_norm_exactly_at_the_threshold_steps_in_both():
    """(3, 4) has norm 5 without rounding, alone and as the mean of (1, 4) and (5, 4)."""
    params = [[torch.zeros(2, requires_grad=True)] for _ in range(2)]
    optimizers = [torch.optim.SGD(p, lr=1.0) for p in params]
    theirs = peer.OptimizerWrapperGNTS(optimizers[0])
    theirs.param_groups[0]["gradient_norm_threshold"] = 5.0
    ours = gqc.OptimizerWrapperGNTS(optimizers[1], 5.0)
    draws = [(3.0, 4.0), (5.0, 4.0), (1.0, 4.0)]
    for grad, expected in zip(draws, (True, False, True), strict=True):
        for wrapper, p in zip((theirs, ours), params, strict=True):
            backward(p, [torch.tensor(grad)])
            assert wrapper.step() is expected
    assert torch.equal(params[0][0], params[1][0])
    assert torch.equal(params[1][0].detach(), torch.tensor([-6.0, -8.0]))
