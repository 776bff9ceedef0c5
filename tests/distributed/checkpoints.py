"""Runs on four ranks, and one check on two: checkpoints of ``torch.distributed`` in mid-window."""

from __future__ import annotations

import copy
import io
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import MAKERS, adamw, batches, full, loss_of, model, reference_run
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

import gqc

BOTH = ("grad", "buffer")
VGS = {"warmup_steps": 2, "alpha": 1.0}
MORE = {
    "vgs": lambda opt, **kw: gqc.OptimizerWrapperVGS(opt, min_draws=3, **VGS, **kw),
    "sbc of vgs": lambda opt, **kw: gqc.OptimizerWrapperSBC(
        gqc.OptimizerWrapperVGS(opt, estimator="elementwise", min_draws=2, **VGS), 8, 24, **kw
    ),
}
CUT = 16  # microbatches; every wrapper here has draws that wait then, or gets one more


def folder(rank: int) -> str:
    """A new one, the same on every rank."""
    shared = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(shared)
    return shared[0]


def sharded(mesh: DeviceMesh) -> nn.Sequential:
    net = model()
    for layer in (net[0], net[2], net[4]):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def train(net, wrapper, data, rank: int, size: int) -> list[bool]:
    stepped = []
    for x, y in data:
        loss = loss_of(net, x[rank::size], y[rank::size])
        loss.backward()
        stepped.append(wrapper.step(metric=loss.detach()))
    return stepped


def until_open(net, wrapper, data, rank: int, size: int) -> list[bool]:
    """Train up to ``CUT`` and on until a draw waits."""
    stepped = train(net, wrapper, data[:CUT], rank, size)
    while wrapper.num_draws == 0:
        stepped += train(net, wrapper, data[len(stepped) :][:1], rank, size)
    return stepped


def replicated() -> DDP:
    """DDP orders its buckets anew after the first backward, and sums round in another way then."""
    net = DDP(model())
    net(batches(1)[0][0]).sum().backward()
    net.zero_grad()
    return net


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(full(a), full(b), strict=True))


def save(net, wrapper, where: str, how: str) -> None:
    optimizer = get_optimizer_state_dict(net, wrapper) if how == "functions" else wrapper
    dcp.save({"model": get_model_state_dict(net), "optimizer": optimizer}, checkpoint_id=where)


def load(net, wrapper, where: str, how: str, group=None) -> None:
    weights = get_model_state_dict(net)
    optimizer = get_optimizer_state_dict(net, wrapper) if how == "functions" else wrapper
    dcp.load({"model": weights, "optimizer": optimizer}, checkpoint_id=where, process_group=group)
    set_model_state_dict(net, weights)
    if how == "functions":
        set_optimizer_state_dict(net, wrapper, optimizer)


def check_same_number_of_ranks(rank: int) -> None:
    """Bit for bit, through a Stateful and through torch's functions."""
    size, data = dist.get_world_size(), batches()
    mesh = DeviceMesh("cpu", range(size))
    waiting = ("gnts", "gns", "normtest", "mht", "sbc", "replay", *MORE)
    for number, name in enumerate(waiting):  # each way with half of them
        how, accumulate = (("stateful", "grad"), ("functions", "buffer"))[number % 2]
        options = {} if name in ("gns", "normtest") else {"accumulate": accumulate}
        first, second = sharded(mesh), sharded(mesh)
        wrapper, resumed = ((MAKERS | MORE)[name](adamw(net), **options) for net in (first, second))
        assert isinstance(wrapper, Stateful)
        done = len(until_open(first, wrapper, data, rank, size))
        where = folder(rank)
        save(first, wrapper, where, how)
        load(second, resumed, where, how)
        assert resumed.num_draws == wrapper.num_draws, name
        assert resumed.statistics() == wrapper.statistics(), name
        for net, one in ((first, wrapper), (second, resumed)):
            train(net, one, data[done : done + 12], rank, size)
        assert equal(first, second), (name, how)


def check_fewer_ranks(rank: int) -> None:
    """Saved by four ranks, continued by two: as one process does, but for rounding."""
    data, pair = batches(), dist.new_group([0, 1])
    mesh, small = DeviceMesh("cpu", [0, 1, 2, 3]), DeviceMesh("cpu", [0, 1])
    for name, how, accumulate in (
        ("gnts", "stateful", "buffer"),
        ("gns", "functions", "buffer"),
        ("sbc", "functions", "grad"),
    ):
        options = {} if name == "gns" else {"accumulate": accumulate}
        first = sharded(mesh)
        wrapper = MAKERS[name](adamw(first), **options)
        decisions = until_open(first, wrapper, data, rank, 4)
        where = folder(rank)
        save(first, wrapper, where, how)
        expected, reference = reference_run(MAKERS[name])  # makes a group, on every rank
        if rank < 2:
            second = sharded(small)
            resumed = MAKERS[name](adamw(second), **options)
            load(second, resumed, where, how, pair)
            decisions += train(second, resumed, data[len(decisions) :], rank, 2)
            assert decisions == expected, (name, how)
            for a, b in zip(full(second), full(reference), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        dist.barrier()


def check_statistics_of_shards(rank: int) -> None:
    """VGS's statistics cannot be cut anew: an error names the ranks that they belong to."""
    first = sharded(DeviceMesh("cpu", [0, 1, 2, 3]))
    wrapper = MORE["vgs"](adamw(first))
    until_open(first, wrapper, batches(), rank, 4)
    saved = get_optimizer_state_dict(first, wrapper, options=StateDictOptions(cpu_offload=True))
    groups = saved["param_groups"][0]
    (key,) = [k for k in groups if k.startswith("wrapper_0_of_rank")]
    assert key == f"wrapper_0_of_rank_{rank}_of_4"
    groups["wrapper_0_of_rank_7_of_8"] = groups.pop(key)
    with pytest.raises(ValueError, match=r"belong to shards of other ranks.*as many ranks"):
        set_optimizer_state_dict(first, wrapper, saved)


def check_between_windows_and_before_the_first(rank: int) -> None:
    """No draw of zeros is left, and asking for a state changes nothing in the training."""
    mesh, data = DeviceMesh("cpu", [0, 1, 2, 3]), batches()
    for wrap in (lambda: sharded(mesh), replicated):
        hows = ("functions",) if wrap is replicated else ("functions", "stateful")
        for num in (0, 1, 3):  # not begun, first window, closed window
            for how in hows:
                untouched, first, second = wrap(), wrap(), wrap()
                plain, wrapper, resumed = (
                    MAKERS["sbc"](adamw(net)) for net in (untouched, first, second)
                )
                train(first, wrapper, data[:num], rank, 4)
                where = folder(rank)
                save(first, wrapper, where, how)
                assert wrapper.num_draws == num % 3
                load(second, resumed, where, how)
                assert resumed.num_draws == num % 3
                train(untouched, plain, data[:8], rank, 4)
                train(first, wrapper, data[num:8], rank, 4)
                train(second, resumed, data[num:8], rank, 4)
                assert equal(untouched, first), (num, how)
                assert equal(first, second), (num, how)


def check_replicated_parameters(rank: int) -> None:
    """DDP through torch's functions; a file that lost its tensors is refused in words."""
    data = batches()
    first, second = replicated(), replicated()
    wrapper, resumed = (MAKERS["gnts"](adamw(net)) for net in (first, second))
    done = len(until_open(first, wrapper, data, rank, 4))
    where = folder(rank)
    save(first, wrapper, where, "functions")
    load(second, resumed, where, "functions")
    for net, one in ((first, wrapper), (second, resumed)):
        train(net, one, data[done:], rank, 4)
    assert equal(first, second)

    third, fourth = replicated(), replicated()
    wrapper, resumed = (MAKERS["gnts"](adamw(net)) for net in (third, fourth))
    train(third, wrapper, data[:12], rank, 4)
    where = folder(rank)
    dcp.save({"optimizer": wrapper}, checkpoint_id=where)
    with pytest.raises(ValueError, match=r"state of 6 parameters.*get_optimizer_state_dict"):
        dcp.load({"optimizer": resumed}, checkpoint_id=where)
    with pytest.raises(NotImplementedError, match="Flattening"):
        get_optimizer_state_dict(
            third, wrapper, options=StateDictOptions(flatten_optimizer_state_dict=True)
        )


def check_full_state(rank: int) -> None:
    """Gathered on rank 0 and broadcast again; and a file of one rank's own shards."""
    mesh, data = DeviceMesh("cpu", [0, 1, 2, 3]), batches()
    for accumulate in BOTH:
        first, second, third = (sharded(mesh) for _ in range(3))
        wrappers = [
            MAKERS["gnts"](adamw(net), accumulate=accumulate) for net in (first, second, third)
        ]
        done = len(until_open(first, wrappers[0], data, rank, 4))
        weights = copy.deepcopy(get_model_state_dict(first))
        gather = StateDictOptions(full_state_dict=True, cpu_offload=True)
        # Copied, since torch shares AdamW's step counts between this and the optimizer.
        whole = copy.deepcopy(get_optimizer_state_dict(first, wrappers[0], options=gather))
        file = io.BytesIO()
        torch.save(wrappers[0].state_dict(), file)
        file.seek(0)
        set_model_state_dict(second, weights)
        set_model_state_dict(third, weights)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_optimizer_state_dict(second, wrappers[1], whole if rank == 0 else {}, options=options)
        wrappers[2].load_state_dict(torch.load(file, weights_only=True))
        for net, wrapper in zip((first, second, third), wrappers, strict=True):
            train(net, wrapper, data[done : done + 8], rank, 4)
        assert equal(first, second), accumulate
        assert equal(first, third), accumulate
