"""Checkpoints of ``torch.distributed.checkpoint``: a scaler without a wrapper, and UPGD."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoints import folder
from ranks import model
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import gqc
from gqc.diagnostics import cosine

SHAPES = ((301, 15), (41,), (7,))  # hashed; uneven shards; a plain tensor on every rank
COMPLEX = (9, 2)


def gradient(shape: tuple[int, ...], step: int, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + len(shape) + shape[0])
    return 1 + torch.randn(shape, generator=generator, dtype=dtype)


class Sharded:
    """A scaler of sharded parameters, or in one process of whole ones (``mesh=None``)."""

    def __init__(self, mesh: DeviceMesh | None, estimator: str) -> None:
        self.mesh = mesh
        shapes = [(shape, torch.float32) for shape in SHAPES] + [(COMPLEX, torch.complex64)]
        self.params = [
            self.place(torch.zeros(shape, dtype=dtype)).requires_grad_() for shape, dtype in shapes
        ]
        self.scaler = gqc.VarianceGradientScaler(
            self.params, estimator=estimator, warmup_steps=2, alpha=1.0, variance_cap=None
        )

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.mesh is None or tensor.shape == (7,):
            return tensor
        return distribute_tensor(tensor, self.mesh, [Shard(0)], src_data_rank=None)

    def train(self, steps: range) -> list[float]:
        factors = []
        for step in steps:
            for param in self.params:
                param.grad = self.place(gradient(tuple(param.shape), step, param.dtype))
            factors.append(self.scaler.scale_gradients())
            self.scaler.step()
        return factors


def meshes(rank: int) -> tuple[DeviceMesh, DeviceMesh]:
    """One of all ranks and one of the first half; every rank makes both."""
    half = dist.get_world_size() // 2
    return DeviceMesh("cpu", range(2 * half)), DeviceMesh("cpu", range(half))


def check_scaler_on_as_many_ranks(rank: int) -> None:
    """Bit for bit; ``statistics`` of one rank are not taken for those of all."""
    mesh, _ = meshes(rank)
    for estimator in ("sketch", "differences", "elementwise", "mean_square"):
        first, second, uncut = (Sharded(mesh, estimator) for _ in range(3))
        assert isinstance(first.scaler, Stateful)
        first.train(range(6))
        where = folder(rank)
        dcp.save({"vgs": first.scaler}, checkpoint_id=where)
        dcp.load({"vgs": second.scaler}, checkpoint_id=where)
        assert second.scaler.step_count == 6
        expected = uncut.train(range(12))
        assert second.train(range(6, 12)) == expected[6:], estimator
        assert min(expected) < 1


def check_scaler_on_fewer_ranks(rank: int) -> None:
    """Moments of elements reshard; those of a rank's sketch are refused by name."""
    mesh, small = meshes(rank)
    half, world = small.size(), mesh.size()
    pair = dist.new_group(list(range(half)))
    for estimator in ("elementwise", "sketch"):
        first, whole = Sharded(mesh, estimator), Sharded(None, estimator)
        first.train(range(6))
        where = folder(rank)
        dcp.save({"vgs": first.scaler}, checkpoint_id=where)
        if rank < half:
            second = Sharded(small, estimator)
            if estimator == "sketch":
                with pytest.raises(dcp.api.CheckpointException, match=f"_of_rank_[01]_of_{half}"):
                    dcp.load({"vgs": second.scaler}, checkpoint_id=where, process_group=pair)
                assert second.scaler.step_count == 0
            else:
                dcp.load({"vgs": second.scaler}, checkpoint_id=where, process_group=pair)
                torch.testing.assert_close(  # sums in another order
                    second.train(range(6, 12)), whole.train(range(12))[6:], rtol=1e-4, atol=0
                )
        dist.barrier()
    state = Sharded(mesh, "sketch").scaler.state_dict()
    statistics = state["statistics"]
    key = f"means_of_rank_{rank}_of_{world}"
    statistics[f"means_of_rank_{rank}_of_{world + 1}"] = statistics.pop(key)
    with pytest.raises(ValueError, match=f"expected '{key}'.*as many ranks as have saved"):
        Sharded(mesh, "sketch").scaler.load_state_dict(state)


def check_cosine_of_shards(rank: int) -> None:
    mesh, _ = meshes(rank)
    pairs = [[gradient(shape, step) for shape in SHAPES] for step in (1, 2)]
    shards = [[Sharded(mesh, "sketch").place(t) for t in tensors] for tensors in pairs]
    assert cosine(*shards) == pytest.approx(cosine(*pairs), rel=1e-5)  # sums in another order


def upgd(is_wrapped: bool):
    net = model()
    options = {"adaptive_noise": True, "instant_noise_scale": False}
    optimizer = gqc.UPGDW(net.parameters(), lr=1e-2, sigma=0.1, **options)
    return net, gqc.OptimizerWrapperSBC(optimizer, 1, 1) if is_wrapped else optimizer


def train_upgd(net, optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        for index, param in enumerate(net.parameters()):
            param.grad = gradient(tuple(param.shape), 10 * step + index)
        optimizer.step()


def check_upgd(rank: int) -> None:
    """Steps, averages and the stream of noise, through every way in; a new one is not stepped."""
    for how in ("stateful", "state of a used one", "functions", "functions, wrapped"):
        (first, saving), (second, loading), (uncut, all_along) = (
            upgd(is_wrapped) for is_wrapped in ["wrapped" in how] * 3
        )
        if "functions" in how:
            get_optimizer_state_dict(first, saving)  # asking changes nothing
        train_upgd(first, saving, range(4))
        where = folder(rank)
        state = get_optimizer_state_dict(first, saving) if "functions" in how else saving
        dcp.save({"optimizer": state}, checkpoint_id=where)
        if how == "stateful":
            dcp.load({"optimizer": loading}, checkpoint_id=where)
        elif "functions" in how:
            room = get_optimizer_state_dict(second, loading)
            dcp.load({"optimizer": room}, checkpoint_id=where)
            set_optimizer_state_dict(second, loading, room)
        else:
            train_upgd(second, loading, range(20, 22))
            room = loading.state_dict()
            dcp.load({"optimizer": room}, checkpoint_id=where)
            loading.load_state_dict(room)
        second.load_state_dict(first.state_dict())
        train_upgd(second, loading, range(4, 8))
        train_upgd(uncut, all_along, range(8))
        for a, b in zip(second.parameters(), uncut.parameters(), strict=True):
            assert torch.equal(a, b), how


def check_noise_of_replicas(rank: int) -> None:
    """Replicas whose generators differ would drift apart; those that nobody replicates may."""
    for seeds, sigma, is_replicated in (
        ((0, 1), 0.1, True),
        ((0, 1), 0.0, True),
        ((0, 1), 0.1, False),
        ((5, 5), 0.1, True),
        (None, 0.1, True),
    ):
        net = model()
        ddp = DistributedDataParallel(net) if is_replicated else net
        generator = seeds and torch.Generator().manual_seed(seeds[rank % 2])
        optimizer = gqc.UPGD(net.parameters(), lr=0.1, sigma=sigma, generator=generator)
        before = [p.detach().clone() for p in net.parameters()]
        if seeds == (0, 1) and sigma and is_replicated:
            with pytest.raises(
                RuntimeError, match=r"generators differ over the ranks .* the same s"
            ):
                train_upgd(net, optimizer, range(1))
            assert all(map(torch.equal, before, net.parameters()))
        else:
            train_upgd(net, optimizer, range(3))
        del ddp
