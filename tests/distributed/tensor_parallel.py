"""Runs on two ranks: a tensor-parallel layer whose norm has partial gradients, against one process.

``SequenceParallel`` keeps the weights of a norm on every rank and gives each its own part of the
sequence, so that a rank's gradient of them is a part of the sum (``Partial``).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import gqc
from gqc.gradients import total_norm
from gqc.scalers import VarianceGradientScaler


class Layer(nn.Module):
    """``down(tanh(up(norm(x))))`` with weights of its own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.5 + 0.5 * torch.randn(p.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(self.norm(x))))


def parallel_layer() -> Layer:
    plan = {
        "norm": SequenceParallel(sequence_dim=1),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1)),
    }
    return parallelize_module(Layer(), init_device_mesh("cpu", (2,)), plan)


def inputs(num: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 4, 6, generator=generator) for _ in range(num)]


def backward(net: Layer, x: Tensor, rank: int | None) -> None:
    """The loss is a sum over positions: a rank's part of it is that of its positions."""
    part = x if rank is None else x.chunk(2, 1)[rank]
    (net(part) - 1).square().sum().div(32).backward()


def full(net: Layer) -> list[Tensor]:
    return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in net.parameters()]


def train(net: Layer, wrapper, data: list[Tensor], rank: int | None) -> list[bool]:
    stepped = []
    for x in data:
        backward(net, x, rank)
        stepped.append(wrapper.step())
    return stepped


MAKERS = {
    "gnts": lambda opt, **kw: gqc.OptimizerWrapperGNTS(opt, 0.8, max_draws=4, **kw),
    "gnr": lambda opt, **kw: gqc.OptimizerWrapperGNR(opt, 1.0, "independent", min_draws=2, **kw),
    "sbc": lambda opt, **kw: gqc.OptimizerWrapperSBC(opt, 1, 3, **kw),
    "vgs": lambda opt, **kw: gqc.OptimizerWrapperVGS(
        opt, estimator="elementwise", warmup_steps=2, alpha=1.0, min_draws=2, **kw
    ),
}


def same(net: Layer, reference: Layer, name: str) -> None:
    """Sums in another order: 12 steps of 0.01 round to about 1e-6."""
    for a, b in zip(full(net), full(reference), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5, msg=lambda m: f"{name}: {m}")
    for p in net.parameters():  # what every rank holds whole must be the same on all of them
        if p.placements[0].is_replicate():
            copies = [torch.empty_like(p.to_local()) for _ in range(2)]
            dist.all_gather(copies, p.to_local().detach().contiguous())
            assert torch.equal(*copies), name


def check_partial_gradients(rank: int) -> None:
    """As one process decides and steps, and the same after a cut in mid-window."""
    data = inputs(24)
    for name, make in MAKERS.items():
        for accumulate in ("grad", "buffer"):
            reference, net = Layer(), parallel_layer()
            expected = train(
                reference,
                make(torch.optim.AdamW(reference.parameters(), lr=0.01), accumulate=accumulate),
                data,
                None,
            )
            wrapper = make(
                torch.optim.AdamW(net.parameters(), lr=0.01, foreach=True), accumulate=accumulate
            )
            decisions = train(net, wrapper, data[:10], rank)
            while wrapper.num_draws == 0:
                decisions += train(net, wrapper, data[len(decisions) :][:1], rank)
            saved = wrapper.state_dict()
            wrapper.discard()
            wrapper.load_state_dict(saved)
            assert wrapper.num_draws > 0
            decisions += train(net, wrapper, data[len(decisions) :], rank)
            assert decisions == expected, (name, accumulate, decisions, expected)
            same(net, reference, f"{name} {accumulate}")


def check_scaler_of_partial_gradients(rank: int) -> None:
    """V of the whole gradient on both ranks, and gradients scaled alike."""
    for estimator in ("elementwise", "sketch", "mean_square"):
        factors = []
        for net, part in ((Layer(), None), (parallel_layer(), rank)):
            scaler = VarianceGradientScaler(
                net.parameters(), estimator=estimator, warmup_steps=1, alpha=1.0, percentile=1.0
            )
            factors.append([])
            for x in inputs(8):
                net.zero_grad()
                backward(net, x, part)
                factors[-1].append(scaler.scale_gradients())
                scaler.step()
            norm = total_norm([p.grad for p in net.parameters()]).item()
            factors[-1].append(norm)
        seen: list = [None, None]
        dist.all_gather_object(seen, factors[1])
        assert seen[0] == seen[1], (estimator, seen)
        # Sketches of shards have other buckets; here every element has one of its own.
        torch.testing.assert_close(
            torch.tensor(factors[1]), torch.tensor(factors[0]), rtol=1e-4, atol=0
        )
        assert min(factors[0][:-1]) < 0.9
