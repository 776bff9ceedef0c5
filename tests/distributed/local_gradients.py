"""Runs on two ranks: gradients that were left local are refused in words, and nothing hangs."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.distributed as dist
from ranks import MAKERS, adamw, alone, batches, full, loss_of, model, reference_run, train
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.nn.parallel import DistributedDataParallel as DDP

import gqc

BOTH = ("grad", "buffer")


def options(name: str, accumulate: str) -> dict[str, str]:
    return {} if name in ("gns", "normtest") else {"accumulate": accumulate}


def refused(rank: int, wrapper, draws) -> str:
    """What the wrapper says before it has stepped twice."""
    for draw in draws:
        draw()
        try:
            wrapper.step(metric=torch.tensor(1.0 + rank))
        except RuntimeError as error:
            return str(error)
        assert wrapper.statistics()["steps"] < 2
    pytest.fail("not refused")


def draws_of(net, data, rank: int):
    return [lambda x=x, y=y: loss_of(net, x, y, rank).backward() for x, y in data]


def check_no_sync_is_refused(rank: int) -> None:
    """Around backward alone, or around the step too; for decisions by the gradient and others."""
    for name, make in MAKERS.items():
        for accumulate in BOTH:
            for is_around_step in (False, True):
                net = DDP(model())
                wrapper = make(adamw(net), **options(name, accumulate))
                draws = draws_of(net, batches(20), rank)
                if is_around_step:
                    with net.no_sync():
                        message = refused(rank, wrapper, draws)
                else:

                    def held_back(draw, net=net):
                        with net.no_sync():
                            draw()

                    message = refused(rank, wrapper, [lambda d=d: held_back(d) for d in draws])
                assert "no_sync" in message, message
                can_reduce = name in ("sbc", "replay", "mht")
                assert ("reduce_at_step=True" in message) is can_reduce, message
                dist.barrier()


def until_one_ends(net, wrapper, draws) -> None:
    with net.join(throw_on_early_termination=True):
        for draw in draws:
            draw()
            wrapper.step(metric=1.0)


def check_uneven_data_are_refused(rank: int) -> None:
    """`DDP.join()`; not where it ends all ranks together, before the draw that one has not."""
    for name, make in MAKERS.items():
        for accumulate in BOTH:
            net = DDP(model())
            wrapper = make(adamw(net), **options(name, accumulate))
            draws = draws_of(net, batches(7 - 2 * rank), rank)
            with net.join():
                assert "throw_on_early_termination" in refused(rank, wrapper, draws[:1])
            assert wrapper.batches == 0
            net.zero_grad()
            with pytest.raises(RuntimeError, match=r"at least one rank|exhausted all inputs"):
                until_one_ends(net, wrapper, draws)
            assert wrapper.batches == 5
            mine = torch.cat([p.flatten() for p in full(net)])
            dist.broadcast(other := mine.clone(), src=0)
            assert torch.equal(mine, other)
            dist.barrier()


def check_flat_shards_are_refused(rank: int) -> None:
    """FSDP1, with and without original parameters; SBC may step without looking, VGS never."""
    for is_original in (False, True):
        for name, accumulate in (("gnts", "buffer"), ("gnts", "grad"), ("sbc", "buffer")):
            net = FSDP(model(), use_orig_params=is_original, device_id=torch.device("cpu"))
            wrapper = MAKERS[name](adamw(net), accumulate=accumulate)
            message = refused(rank, wrapper, draws_of(net, batches(4), rank))
            assert "fully_shard" in message, message
            assert ("nonfinite" in message) is (name == "sbc"), message
        net = FSDP(model(), use_orig_params=is_original, device_id=torch.device("cpu"))
        wrapper = gqc.OptimizerWrapperVGS(adamw(net), nonfinite="ignore")
        message = refused(rank, wrapper, draws_of(net, batches(4), rank))
        assert "fully_shard" in message, message
        assert "nonfinite" not in message, message
        net = FSDP(model(), use_orig_params=is_original, device_id=torch.device("cpu"))
        with pytest.raises(RuntimeError, match="UPGD of FullyShardedDataParallel"):
            gqc.UPGD(net.parameters())
        scaler = gqc.VarianceGradientScaler(net.parameters())
        loss_of(net, *batches(1)[0]).backward()
        with pytest.raises(RuntimeError, match="VarianceGradientScaler of FullyShardedData"):
            scaler.scale_gradients()
    net = FSDP(model(), use_orig_params=True, device_id=torch.device("cpu"))
    wrapper = MAKERS["sbc"](adamw(net), nonfinite="ignore")
    decisions = train(net, wrapper, batches(), rank)
    expected, reference = reference_run(MAKERS["sbc"])
    assert decisions == expected
    with FSDP.summon_full_params(net):
        for a, b in zip(net.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def check_separate_trainings_are_left_alone(rank: int) -> None:
    """Each rank trains its own model, with its own number of draws: no rank waits for another."""
    data = batches(12 + 5 * rank)
    for name, make in MAKERS.items():
        net = model()
        with torch.no_grad():
            for p in net.parameters():
                p += 0.1 * rank
        wrapper = make(adamw(net))
        if name == "mht":  # which averages the metric: over whom, nothing says
            loss_of(net, *data[0]).backward()
            with pytest.raises(RuntimeError, match="pass process_group= to the wrapper"):
                wrapper.step(metric=1.0)
            net.zero_grad()
            wrapper = make(adamw(net), process_group=alone())
        assert sum(train(net, wrapper, data)) > 0, name
    dist.barrier()


def check_stages_are_left_alone(rank: int) -> None:
    """Ranks 0 and 1 hold different parameters, each replicated in a group of one."""
    net = DDP(model(), process_group=alone())
    wrapper = MAKERS["gnts"](adamw(net))
    decisions = train(net, wrapper, batches(12 + 5 * rank))
    reference = model()
    assert decisions == train(reference, MAKERS["gnts"](adamw(reference)), batches(12 + 5 * rank))
    dist.barrier()


def check_a_rank_that_skips_a_draw(rank: int) -> None:
    """It blocks nobody: the other says so after a while, and their norms differ then."""
    net = DDP(model())
    wrapper = MAKERS["gnts"](adamw(net))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gqc.ranks, "PATIENCE", 0.2)
        draws = draws_of(net, batches(3), rank)
        draws[0]()
        if rank == 0:
            with pytest.warns(UserWarning, match="rank 1 has made no draw 1 for 0"):
                wrapper.step()
        draws[1]()  # of rank 1 the first draw, of two microbatches
        if rank == 1:
            with pytest.raises(RuntimeError, match=r"differ.*rank 0 at its draw 1"):
                wrapper.step()
    dist.barrier()


def check_mixed_weights(rank: int) -> None:
    """A draw without a weight has that of all ranks together, one with a weight that of its own."""
    net = DDP(model())
    wrapper = gqc.OptimizerWrapperReplay(adamw(net), [2])
    first, second = draws_of(net, batches(2), rank)
    first()
    wrapper.step(weight=4)
    second()
    with pytest.raises(ValueError, match="without a weight after step"):
        wrapper.step()
    dist.barrier()


def check_an_explicit_group(rank: int) -> None:
    """Gradients that the loop reduces itself: compared only where the group is given."""
    for does_reduce in (True, False):
        net = model()
        wrapper = gqc.OptimizerWrapperGNTS(
            adamw(net), 1.5, max_draws=6, process_group=dist.group.WORLD
        )

        def reduce(net=net) -> None:
            for p in net.parameters():
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()

        if does_reduce:
            decisions = train(net, wrapper, batches(), rank, reduce)
            assert decisions == reference_run(MAKERS["gnts"])[0]
        else:
            assert "differ" in refused(rank, wrapper, draws_of(net, batches(4), rank))


def check_compression_hooks(rank: int) -> None:
    """float16 cannot count above 2048: 2048, 1 and 1 would sum to 2048."""
    for accumulate in BOTH:
        net = DDP(torch.nn.Linear(2, 1, bias=False))
        net.register_comm_hook(None, default_hooks.fp16_compress_hook)
        start = net.module.weight.detach().clone()
        inner = torch.optim.SGD(net.parameters(), lr=3 / 2048)
        wrapper = gqc.OptimizerWrapperSBC(inner, 1, 3, accumulate=accumulate)
        net(torch.full((1, 2), 2048.0)).sum().backward()
        if accumulate == "grad":
            with pytest.raises(RuntimeError, match=r'fp16_compress_hook.*accumulate="buffer"'):
                wrapper.step()
            continue
        assert wrapper.step() is False
        for _ in range(2):
            net(torch.ones(1, 2)).sum().backward()
            stepped = wrapper.step()
        assert stepped is True
        moved = start - net.module.weight.detach()
        torch.testing.assert_close(moved, torch.full((1, 2), 2050 / 2048), rtol=1e-6, atol=0)


def check_a_checkpoint_of_rank_0_in_mid_window(rank: int) -> None:
    """``reduce_at_step`` keeps local sums: rank 0's file fits the others after reduce_pending()."""
    make, data = MAKERS["sbc"], batches(40)
    for accumulate in BOTH:

        def wrapper_of(net, accumulate=accumulate):
            return make(adamw(net), reduce_at_step=True, accumulate=accumulate)

        first = DDP(model())
        wrapper = wrapper_of(first)
        with first.no_sync():
            train(first, wrapper, data[:16], rank)
        assert wrapper.num_draws == 1
        with pytest.warns(UserWarning, match=r"reduce_pending\(\) on every rank"):
            own = copy.deepcopy(wrapper.state_dict())
        shared = [own]
        dist.broadcast_object_list(shared)
        second = DDP(copy.deepcopy(first.module))
        resumed = wrapper_of(second)
        if rank == 0:
            resumed.load_state_dict(shared[0])
        else:
            with pytest.raises(ValueError, match="of rank 0 given to rank 1"):
                resumed.load_state_dict(shared[0])
        wrapper.reduce_pending()
        shared = [copy.deepcopy(wrapper.state_dict())]
        dist.broadcast_object_list(shared)
        resumed = wrapper_of(second)
        resumed.load_state_dict(shared[0])
        for net, one in ((first, wrapper), (second, resumed)):
            with net.no_sync():
                train(net, one, data[16:], rank)
        reference = reference_run(make)[1]
        for a, b, c in zip(full(first), full(second), full(reference), strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c, rtol=0, atol=1e-4)


def check_what_closes_next_left_local(rank: int) -> None:
    """Its draws are summed over the ranks where the window is flushed, and in no other's file."""

    def trainer(**options):
        net = DDP(torch.nn.Linear(1, 1, bias=False))
        net.module.weight.data.zero_()
        sgd = torch.optim.SGD(net.parameters(), lr=1.0)
        wrapper = gqc.OptimizerWrapperSBC(sgd, 1, accumulate="grad", **options)

        def draw(value: float, **given) -> bool:
            is_last = wrapper.closes_next(**given)
            with contextlib.nullcontext() if is_last else net.no_sync():
                net(torch.full((1, 1), value)).sum().backward()
            assert wrapper.step(**given) is is_last
            return is_last

        return net.module.weight, wrapper, draw

    own, mean = (1.0, 3.0)[rank], 2.0
    for ended in ("flush", "saved", "reduced"):
        weight, wrapper, draw = trainer(logical_batch_size=3)
        for _ in range(9):  # more windows than the ranks compare
            draw(own)
        draw(own), draw(own)
        if ended == "flush":
            assert wrapper.flush()
        if ended == "saved":
            with pytest.warns(UserWarning, match=r"reduce_pending\(\) on every rank"):
                states = [copy.deepcopy(wrapper.state_dict())]
            fresh = [*states]
            dist.broadcast_object_list(states)
            if rank == 1:
                with pytest.raises(ValueError, match="of rank 0 given to rank 1"):
                    wrapper.load_state_dict(states[0])
            wrapper.load_state_dict(fresh[0])
            assert wrapper.flush()
        if ended == "reduced":
            wrapper.reduce_pending()
            states = [copy.deepcopy(wrapper.state_dict())]
            dist.broadcast_object_list(states)
            wrapper.load_state_dict(states[0])
            assert draw(own)
        assert weight.item() == -4 * mean, (ended, weight)
    for loss, factor in (("mean", 1.0), ("sum", 2.0)):
        weight, wrapper, draw = trainer(logical_batch_size=8, loss=loss)
        assert [draw(factor * own, weight=2) for _ in range(4)] == [False, True] * 2
        assert weight.item() == -2 * mean
    weight, wrapper, draw = trainer(logical_batch_size=8, loss="sum")  # of unequal weights
    assert [draw(own, weight=own) for _ in range(4)] == [False, True] * 2
    assert weight.item() == -2.0
