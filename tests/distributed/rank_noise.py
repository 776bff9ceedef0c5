"""The noise scale from the gradients of two ranks, under DDP and FSDP2 (run by torchrun)."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gqc
from gqc.noise import NoiseScaleEMA, two_batch
from gqc.rank_noise import RankNoise

NUM, SIGNAL_SQ, NOISE = 300, 1.0, 6.0


class Linear(nn.Module):
    """The gradient of its weights is the input, whatever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(12, 1, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.first(x[:12]) + self.second(x[12:])).sum()


def draws(step: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    noise = torch.randn(24, generator=generator)
    return (SIGNAL_SQ / 24) ** 0.5 + (NOISE / 24) ** 0.5 * noise


def expected(num: int, decay: float) -> NoiseScaleEMA:
    """From the gradients of both ranks, at hand on each."""
    average = NoiseScaleEMA(decay)
    for step in range(num):
        both = torch.stack([draws(step, rank) for rank in range(2)])
        small, large = both.square().sum(1).mean().item(), both.mean(0).square().sum().item()
        average.update(*two_batch(small, large, 2))
    return average


def run(net: nn.Module, rank: int, num: int = NUM) -> RankNoise:
    noise = RankNoise(net, NoiseScaleEMA(decay=0.995))
    for step in range(num):
        net.zero_grad()
        net(draws(step, rank)).backward()
        noise.update()
    return noise


def check_ddp(rank: int) -> None:
    for options in ({}, {"gradient_as_bucket_view": True}, {"bucket_cap_mb": 1e-5}):
        net = DDP(Linear(), **options)
        noise = run(net, rank)
        reference = expected(NUM, 0.995)
        assert noise.average.signal_sq == pytest.approx(reference.signal_sq, rel=1e-4)
        assert noise.average.noise_trace == pytest.approx(reference.noise_trace, rel=1e-4)
        # 2 T^2 / (24 * 300 * 1): 2 % of T; the signal of 24 dimensions and n = 2 is noisier
        assert noise.average.noise_trace == pytest.approx(NOISE, rel=0.1)
        assert noise.average.noise_scale == pytest.approx(NOISE / SIGNAL_SQ, rel=0.35)
        mean = sum(draws(NUM - 1, r) for r in range(2)) / 2
        torch.testing.assert_close(net.module.first.weight.grad[0], mean[:12])


def check_fsdp2(rank: int) -> None:
    from torch.distributed.fsdp import fully_shard

    net = Linear()
    fully_shard(net.first)
    fully_shard(net)
    noise = run(net, rank)
    reference = expected(NUM, 0.995)
    assert noise.average.signal_sq == pytest.approx(reference.signal_sq, rel=1e-4)
    assert noise.average.noise_trace == pytest.approx(reference.noise_trace, rel=1e-4)
    mean = sum(draws(NUM - 1, r) for r in range(2)) / 2
    torch.testing.assert_close(net.second.weight.grad.full_tensor()[0], mean[12:])


def check_gns(rank: int) -> None:
    """It decides by the noise among ranks from the first draw on, in windows of one draw too."""
    net = DDP(Linear())
    noise = RankNoise(net)
    sgd = torch.optim.SGD(net.parameters(), lr=0.0)
    wrapper = gqc.OptimizerWrapperGNS(sgd, 2.0, rank_noise=noise)
    average, num_draws = NoiseScaleEMA(), 0
    for step in range(60):
        net(draws(step, rank)).backward()
        both = torch.stack([draws(step, r) for r in range(2)])
        average.update(
            *two_batch(both.square().sum(1).mean().item(), both.mean(0).square().sum().item(), 2)
        )
        num_draws, scale = num_draws + 1, average.noise_scale
        expected = num_draws == 64 or (scale is not None and scale / 2 <= 2.0 * num_draws)
        assert wrapper.step() is expected, step
        num_draws = 0 if expected else num_draws
    assert wrapper.statistics()["noise_scale"] == pytest.approx(average.noise_scale, rel=1e-4)
    assert wrapper.statistics()["steps"] > 10
    wrapper.discard()
    net(draws(60, rank)).backward()
    with pytest.raises(ValueError, match="with rank_noise="):
        wrapper.step(weight=3)
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(wrapper)
    with pytest.raises(ValueError, match="leave out reactive=True"):
        gqc.OptimizerWrapperGNS(sgd, rank_noise=noise, reactive=True)


def check_loss_scale(rank: int) -> None:
    """Estimates are of the gradients without it, also where it changes."""
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=5)
    net = DDP(Linear())
    wrapper = gqc.OptimizerWrapperGNS(
        torch.optim.SGD(net.parameters(), lr=0.0), rank_noise=RankNoise(net), grad_scaler=scaler
    )
    for step in range(40):
        scaler.scale(net(draws(step, rank))).backward()
        wrapper.step()
    assert scaler.get_scale() > 64.0
    reference, found = expected(40, 0.95), wrapper.statistics()
    assert found["signal_sq"] == pytest.approx(reference.signal_sq, rel=1e-4)
    assert found["noise_scale"] == pytest.approx(reference.noise_scale, rel=1e-4)


def check_what_cannot_be_compared(rank: int) -> None:
    net = DDP(Linear())
    noise = run(net, rank, num=3)
    before = noise.average.state_dict()
    net.zero_grad()
    with net.no_sync():
        net(draws(3, rank)).backward()
    noise.update()
    net.zero_grad()
    net(draws(4, rank) * (float("nan") if rank else 1.0)).backward()
    noise.update()
    assert (noise.num_skipped, noise.average.state_dict()) == (2, before)
    with pytest.raises(TypeError, match="model is a Linear: expected a DistributedDataParallel"):
        RankNoise(Linear())
    alone = [dist.new_group([r]) for r in range(2)]
    with pytest.raises(ValueError, match="one rank"):
        RankNoise(DDP(Linear(), process_group=alone[rank]))


def check_habits(rank: int) -> None:
    """Several backwards that are reduced as one gradient are refused, on every rank."""
    for options in ({}, {"gradient_as_bucket_view": True}):
        net = DDP(Linear(), **options)
        noise = RankNoise(net, NoiseScaleEMA(decay=0.995))
        for habit in (two_losses, local_draws, without_clearing):
            net.zero_grad()
            habit(net, rank, net.no_sync)
            with pytest.raises(
                RuntimeError, match="add the losses of a microbatch and go back onc"
            ):
                noise.update()
        for step in range(NUM):  # and the next ones are right: zeros are as good as None
            net.zero_grad(set_to_none=False)
            net(draws(step, rank)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)  # .grad may be DDP's own memory
            noise.update()
        assert (noise.num_skipped, noise.average.num_updates) == (0, NUM)
        reference = expected(NUM, 0.995)
        assert noise.average.signal_sq == pytest.approx(reference.signal_sq, rel=1e-4)
        assert noise.average.noise_trace == pytest.approx(reference.noise_trace, rel=1e-4)


def check_habits_under_fsdp2(rank: int) -> None:
    from torch.distributed.fsdp import fully_shard

    @contextlib.contextmanager
    def no_sync():
        net.set_requires_gradient_sync(False)
        yield
        net.set_requires_gradient_sync(True)

    net = Linear()
    fully_shard(net.first)
    fully_shard(net)
    noise = RankNoise(net)
    for habit in (two_losses, local_draws, without_clearing):
        net.zero_grad()
        habit(net, rank, no_sync)
        with pytest.raises(RuntimeError, match=r"without no_sync\(\), closes_next\(\) or set_req"):
            noise.update()
    for _ in range(2):  # a microbatch that is skipped, and zeros, are no mistakes
        net.zero_grad(set_to_none=False)
        with torch.no_grad(), no_sync():
            net(draws(0, rank))
        net(draws(0, rank)).backward()
    noise.update()
    assert (noise.num_skipped, noise.average.num_updates) == (0, 1)


def two_losses(net: nn.Module, rank: int, no_sync) -> None:
    for _ in range(2):
        (net(draws(0, rank)) / 2).backward()


def local_draws(net: nn.Module, rank: int, no_sync) -> None:
    with no_sync():
        for step in range(3):
            net(draws(step, rank)).backward()
    net(draws(3, rank)).backward()


def without_clearing(net: nn.Module, rank: int, no_sync) -> None:
    if rank == 0:  # one is enough, of FSDP2 the one that has a shard
        for param in net.parameters():
            param.grad = torch.ones_like(param)
    net(draws(0, rank)).backward()
