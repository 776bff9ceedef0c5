"""Runs on each of two ranks: wrappers decide and step as they do in one process.

Rank r of W sees rows r::W of every microbatch; the reference sees all rows at once, so its gradient
is the average of the ranks' (equal shares).
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

import gqc
from gqc.wrappers.saved import unpack

MAKERS = {
    "gnts": lambda opt, **kw: gqc.OptimizerWrapperGNTS(opt, 1.5, max_draws=6, **kw),
    "gns": lambda opt, **kw: gqc.OptimizerWrapperGNS(opt, 0.5, max_draws=6, **kw),
    "normtest": lambda opt, **kw: gqc.OptimizerWrapperNormTest(opt, 0.8, max_draws=6, **kw),
    "mht": lambda opt, **kw: gqc.OptimizerWrapperMHT(opt, 0.9, 0.2, max_draws=6, **kw),
    "sbc": lambda opt, **kw: gqc.OptimizerWrapperSBC(opt, 8, 24, **kw),
    "gnr": lambda opt, **kw: gqc.OptimizerWrapperGNR(opt, 1.0, **kw),
    "gnr_independent": lambda opt, **kw: gqc.OptimizerWrapperGNR(opt, 1.0, "independent", **kw),
    "replay": lambda opt, **kw: gqc.OptimizerWrapperReplay(opt, [1, 3, 2] * 20, **kw),
}


def model() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return net


def batches(num: int = 40) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    data = []
    for _ in range(num):
        x = torch.randn(8, 6, generator=generator)
        data.append((x, x.sum(1, keepdim=True) + torch.randn(8, 1, generator=generator)))
    return data


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.01)


def loss_of(net, x, y, rank: int | None = None):
    if rank is not None:
        x, y = x[rank :: dist.get_world_size()], y[rank :: dist.get_world_size()]
    return (net(x) - y).square().mean()


def train(net, wrapper, data, rank=None, after_backward=lambda: None) -> list[bool]:
    stepped = []
    for x, y in data:
        loss = loss_of(net, x, y, rank)
        loss.backward()
        after_backward()
        stepped.append(wrapper.step(metric=loss.detach()))
    return stepped


def full(net: nn.Module) -> list[torch.Tensor]:
    return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in net.parameters()]


def agree(name: str, decisions: list[bool], net, reference: list[bool], expected) -> None:
    """Same decisions on all ranks and as one process; parameters to float32 rounding."""
    seen: list = [None] * dist.get_world_size()
    dist.all_gather_object(seen, decisions)
    assert all(d == seen[0] for d in seen), f"{name}: ranks disagree"
    assert decisions == reference, f"{name}: {decisions} != {reference}"
    assert sum(decisions) >= 3, name
    for a, b in zip(full(net), full(expected), strict=True):
        # Reduction orders differ by rounding; Adam's division makes that up to about lr * 1e-3.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4, msg=lambda m: f"{name}: {m}")


@functools.cache
def alone() -> dist.ProcessGroup:
    """A group of this rank: for a wrapper that averages a metric, and is not to wait for others."""
    return dist.new_subgroups(1)[0]


def reference_run(make):
    net = model()
    return train(net, make(adamw(net), process_group=alone()), batches()), net


def ways(name: str) -> tuple[dict, ...]:
    """Where the gradients may be summed."""
    return ({},) if name in ("gns", "normtest") else ({}, {"accumulate": "grad"})


def check_ddp(rank: int) -> None:
    for name, make in MAKERS.items():
        for options in ways(name):
            net = DDP(model())
            decisions = train(net, make(adamw(net), **options), batches(), rank)
            agree(f"ddp {name} {options}", decisions, net, *reference_run(make))


def check_bucket_views(rank: int) -> None:
    """DDP moves its buckets after the first backward, here in the middle of a window."""
    for name in ("gnts", "sbc"):
        for options in ways(name):
            net = DDP(model(), gradient_as_bucket_view=True)
            decisions = train(net, MAKERS[name](adamw(net), **options), batches(), rank)
            agree(f"bucket views {name} {options}", decisions, net, *reference_run(MAKERS[name]))
    clears = (lambda _: None, torch.zeros)  # model.zero_grad() in mid-window, where DDP makes views
    cases = [*itertools.product((False, True), clears), (True, lambda shape: torch.zeros(shape)[:])]
    for (is_local, clear), cleared in itertools.product(cases, (0, 1)):
        net = DDP(model(), gradient_as_bucket_view=True)
        wrapper = gqc.OptimizerWrapperSBC(adamw(net), 1, 3, accumulate="grad")
        train(net, wrapper, batches(9), rank)
        assert not wrapper.closes_next()
        with net.no_sync() if is_local else contextlib.nullcontext():
            train(net, wrapper, batches(1), rank)
        for param in [*net.parameters()][cleared:]:
            param.grad = clear(param.shape)
        with pytest.raises(RuntimeError, match='accumulate="buffer"'):
            train(net, wrapper, batches(1), rank)


def check_clipping(rank: int) -> None:
    """The guard sees through what DDP does to gradients at the end of a backward."""
    for views in (False, True):
        net = DDP(model(), gradient_as_bucket_view=views)
        wrapper = MAKERS["gnts"](adamw(net), accumulate="grad")
        loss_of(net, *batches(1)[0], rank).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        with pytest.raises(RuntimeError, match="clip_norm="):
            wrapper.step()
    for make_net in (lambda: DDP(model()), sharded):
        net, clipped = make_net(), []
        wrapper = MAKERS["sbc"](torch.optim.SGD(net.parameters(), lr=1.0), clip_norm=1e-3)
        wrapper.optimizer.register_step_pre_hook(
            lambda *_, net=net, clipped=clipped: clipped.append(
                gqc.gradients.total_norm(grads_of(net)).item()
            )
        )
        train(net, wrapper, batches(6), rank)
        assert clipped == pytest.approx([1e-3, 1e-3], rel=1e-4)


def grads_of(net: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in net.parameters()]


def check_weights(rank: int) -> None:
    """Ranks with 5 and 3 rows of 8: summed losses give the mean over all rows, mean losses fail."""
    share = slice(0, 5) if rank == 0 else slice(5, 8)
    reference = model()
    train(reference, gqc.OptimizerWrapperSBC(adamw(reference), 8, 24), batches())
    kinds = [("ddp", o) for o in ({}, {"accumulate": "grad"}, {"reduce_at_step": True})]
    for kind, options in [*kinds, ("fsdp2", {})]:
        net = sharded() if kind == "fsdp2" else DDP(model())
        wrapper = gqc.OptimizerWrapperSBC(adamw(net), 8, 24, loss="sum", **options)
        local = net.no_sync() if "reduce_at_step" in options else contextlib.nullcontext()
        decisions = []
        with local:
            for x, y in batches():
                (net(x[share]) - y[share]).square().sum().backward()
                decisions.append(wrapper.step(weight=len(y[share])))
        expected = [(i + 1) % 3 == 0 for i in range(40)]
        agree(f"weights {kind} {options}", decisions, net, expected, reference)
        assert wrapper.last_window.weight == 24
    net = DDP(model())
    wrapper = gqc.OptimizerWrapperGNTS(adamw(net), 1.5)
    x, y = batches(1)[0]
    (net(x[share]) - y[share]).square().mean().backward()
    with pytest.raises(ValueError, match='loss="sum"'):
        wrapper.step(weight=len(y[share]))
    # Local gradients, which nobody has averaged yet, may have any weights.
    net = DDP(model())
    wrapper = gqc.OptimizerWrapperSBC(adamw(net), 8, 24, reduce_at_step=True)
    with net.no_sync():
        for x, y in batches():
            (net(x[share]) - y[share]).square().mean().backward()
            wrapper.step(weight=len(y[share]))
    for a, b in zip(full(net), full(reference), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def check_seldom(rank: int) -> None:
    """closes_next() and decide_every: the same steps for fewer elements reduced."""
    kinds = {
        "sbc": (lambda opt, **kw: gqc.OptimizerWrapperSBC(opt, 8, 24, **kw), 3),
        "gnts": (
            lambda opt, **kw: gqc.OptimizerWrapperGNTS(
                opt, 2.0, min_draws=4, decide_every=4, max_draws=8, **kw
            ),
            4,
        ),
    }
    for (name, (make, fewer)), views in itertools.product(kinds.items(), (False, True)):
        reference = reference_run(make)
        net, counts = DDP(model(), gradient_as_bucket_view=views), []
        net.register_comm_hook(counts, counted_allreduce)
        wrapper, decisions = make(adamw(net), accumulate="grad"), []
        for x, y in batches():
            local = contextlib.nullcontext() if wrapper.closes_next() else net.no_sync()
            with local:
                loss_of(net, x, y, rank).backward()
            decisions.append(wrapper.step())
        agree(f"seldom ddp {name}", decisions, net, *reference)
        size = sum(p.numel() for p in net.parameters())
        assert sum(counts) <= size * (40 // fewer + 1), (name, sum(counts) / size)
        for options in ({}, {"accumulate": "grad"}):
            net = sharded()
            wrapper, decisions = make(adamw(net), **options), []
            counts = []
            with pytest.MonkeyPatch.context() as patch:
                for called in {"reduce_scatter_tensor", "reduce_scatter_single"} & set(dir(dist)):
                    patch.setattr(dist, called, counted_scatter(counts, called))
                for x, y in batches():
                    net.set_requires_gradient_sync(wrapper.closes_next())
                    loss_of(net, x, y, rank).backward()
                    decisions.append(wrapper.step())
            agree(f"seldom fsdp2 {name} {options}", decisions, net, *reference)
            assert 0 < sum(counts) <= size * 1.1 * (40 // fewer + 1)  # shards are padded
    net = sharded()
    wrapper = MAKERS["sbc"](adamw(net))
    net.set_requires_gradient_sync(wrapper.closes_next())
    loss_of(net, *batches(1)[0], rank).backward()
    assert wrapper.step() is False
    for call in (wrapper.flush, wrapper.state_dict):  # FSDP2 holds the draw
        with pytest.raises(RuntimeError, match="has not reduced them"):
            call()
    net = DDP(model())
    with pytest.raises(RuntimeError, match='accumulate="grad", or reduce_at_step=True'):
        MAKERS["sbc"](adamw(net)).closes_next()


def check_metrics_of_deferred_draws(rank: int) -> None:
    """FSDP2 keeps gradients until a window may close; metrics come at each draw."""

    def mht(opt, **kw):
        return gqc.OptimizerWrapperMHT(
            opt, 0.9, 0.5, min_draws=3, decide_every=3, max_draws=9, **kw
        )

    def draw(wrapper, net, x, y, metric=None) -> bool:
        net.set_requires_gradient_sync(wrapper.closes_next())
        loss = loss_of(net, x, y, rank)
        loss.backward()
        return wrapper.step(metric=loss.detach() if metric is None else metric)

    net = sharded()
    wrapper = mht(adamw(net))
    decisions = [draw(wrapper, net, x, y) for x, y in batches()]
    agree("deferred metrics", decisions, net, *reference_run(mht))
    net = sharded()
    inner = gqc.OptimizerWrapperMHT(adamw(net))
    wrapper = gqc.OptimizerWrapperSBC(inner, 1, 4)
    for metric, (x, y) in zip([1.0, 2.0, 3.0, 4.0], batches(4), strict=True):
        draw(wrapper, net, x, y, metric)
    assert inner._metrics == [2.5]
    net = sharded()
    wrapper = mht(adamw(net))
    metrics = [1.0, math.nan, *[1.0] * 6]
    with pytest.warns(UserWarning, match="without a finite metric is discarded"):
        decisions = [draw(wrapper, net, *batches(1)[0], metric) for metric in metrics]
    # The third draw brings the gradient of three: all of them go, and the next window is whole.
    assert decisions == [False] * 5 + [True, False, False]
    assert wrapper.statistics()["num_discarded"] == 3


def counted_scatter(counts: list, name: str):
    scatter = getattr(dist, name)

    def count(*args, **kwargs):
        given = [*args, *kwargs.values()]
        counts.append(max(t.numel() for t in given if isinstance(t, torch.Tensor)))
        return scatter(*args, **kwargs)

    return count


def counted_allreduce(counts, bucket):  # DDP takes no annotations that are strings
    counts.append(bucket.buffer().numel())
    return default_hooks.allreduce_hook(None, bucket)


def check_missing_metric(rank: int) -> None:
    """None on one rank discards the draw on both."""
    for options in ways("mht"):
        net = DDP(model())
        wrapper = MAKERS["mht"](adamw(net), **options)
        for i, (x, y) in enumerate(batches(4)):
            loss = loss_of(net, x, y, rank)
            loss.backward()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wrapper.step(metric=None if i == 1 and rank == 1 else loss.detach())
        assert wrapper.statistics()["num_discarded"] == (2 if options else 1)  # or its window


def sharded() -> nn.Sequential:
    net = model()
    for layer in (net[0], net[2], net[4]):
        fully_shard(layer)
    fully_shard(net)
    return net


def check_fsdp2(rank: int) -> None:
    for accumulate in ("grad", "buffer"):
        for name, make in MAKERS.items():
            own_buffer = name in ("gns", "normtest")
            options = {} if own_buffer else {"accumulate": accumulate}
            net = sharded()
            decisions = train(net, make(adamw(net), **options), batches(), rank)
            agree(f"fsdp2 {name} {accumulate}", decisions, net, *reference_run(make))


def check_messages_of_norms(rank: int) -> None:
    """Norms of all tensors take one message a draw, whatever their number."""
    net, send, messages = sharded(), dist.all_reduce, []

    def count(*args, **kwargs):
        messages.append(args)
        return send(*args, **kwargs)

    wrapper = MAKERS["gnr_independent"](adamw(net))
    for x, y in batches(6):
        loss_of(net, x, y, rank).backward()
        messages.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "all_reduce", count)
            assert wrapper.step() is True
        assert len(messages) == 1


def check_tiny_gradients(rank: int) -> None:
    """Squares of their elements are 0: the ranks agree on the largest element of all shards."""
    for name in ("gnr", "gnr_independent"):
        nets = [model(), sharded()]
        for net, part in zip(nets, (None, rank), strict=True):
            wrapper = MAKERS[name](torch.optim.SGD(net.parameters(), lr=0.1))
            for x, y in batches(3):
                (1e-25 * loss_of(net, x, y, part)).backward()
                assert wrapper.step() is True
        for a, b in zip(full(nets[1]), full(nets[0]), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def check_mixed(rank: int) -> None:
    """Some parameters sharded, some replicated, in one optimizer."""
    for name, make in MAKERS.items():
        net = model()
        fully_shard(net[2])
        replicated = [*net[0].parameters(), *net[4].parameters()]

        def reduce(replicated=replicated) -> None:
            for p in replicated:
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()

        options = {} if name in ("gns", "normtest") else {"accumulate": "buffer"}
        decisions = train(net, make(adamw(net), **options), batches(), rank, reduce)
        agree(f"mixed {name}", decisions, net, *reference_run(make))


def check_no_sync(rank: int) -> None:
    """Communicate once a step; one parameter has a gradient on rank 0 only."""
    for accumulate in ("grad", "buffer"):
        for name in ("sbc", "replay", "mht"):
            make = MAKERS[name]
            net = DDP(model())
            wrapper = make(adamw(net), reduce_at_step=True, accumulate=accumulate)
            with net.no_sync():
                decisions = train(net, wrapper, batches(), rank)
            agree(f"no_sync {name} {accumulate}", decisions, net, *reference_run(make))
        for dtype in (
            (torch.float32, torch.bfloat16) if accumulate == "buffer" else (torch.float32,)
        ):
            uneven = [torch.ones(3, dtype=dtype, requires_grad=True) for _ in range(3)]
            wrapper = gqc.OptimizerWrapperSBC(
                torch.optim.SGD(uneven, lr=1.0), 1, 2, reduce_at_step=True, accumulate=accumulate
            )
            for _ in range(2):
                loss = uneven[0].sum() + (4 * uneven[1].sum() if rank == 0 else 0.0)
                loss.backward()
                wrapper.step()
            share = 4 / dist.get_world_size()
            assert torch.equal(uneven[0].detach(), torch.zeros(3, dtype=dtype))
            assert torch.equal(uneven[1].detach(), torch.full((3,), 1 - share, dtype=dtype))
            assert uneven[2].grad is None
    for name in ("gnts", "gns", "normtest", "gnr"):
        with pytest.raises(ValueError, match="no_sync"):
            MAKERS[name](adamw(model()), reduce_at_step=True)


def check_nan_on_one_rank(rank: int) -> None:
    for kind in ("ddp", "ddp, grad", "fsdp2", "fsdp2, grad", "no_sync"):
        net = sharded() if kind.startswith("fsdp2") else DDP(model())
        options = {"reduce_at_step": True} if kind == "no_sync" else {}
        options |= {"accumulate": "grad"} if kind.endswith("grad") else {}
        wrapper = gqc.OptimizerWrapperSBC(adamw(net), 8, 16, **options)
        data = batches(6)
        if rank == 1:
            data[2] = (data[2][0] * math.nan, data[2][1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "no_sync":
                with net.no_sync():
                    decisions = train(net, wrapper, data, rank)
            else:
                decisions = train(net, wrapper, data, rank)
        is_alone = kind in ("ddp", "fsdp2")  # the draw is dropped alone, else its window
        expected = [False, True, False, False, is_alone, not is_alone]
        assert decisions == expected, (kind, decisions)
        assert wrapper.statistics()["num_discarded"] == 2 - is_alone, kind
        assert all(p.isfinite().all() for p in full(net)), kind


def check_resume_of_shards(rank: int) -> None:
    """FSDP2, cut in mid-window, through a file of this rank's shards."""
    for accumulate in ("grad", "buffer"):
        make, data = MAKERS["sbc"], batches()
        whole = sharded()
        train(whole, make(adamw(whole), accumulate=accumulate), data, rank)
        first = sharded()
        wrapper = make(adamw(first), accumulate=accumulate)
        train(first, wrapper, data[:16], rank)
        assert wrapper.num_draws == 1
        file = io.BytesIO()
        torch.save(wrapper.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        if accumulate == "grad":  # as format 1 had it: this rank's shards, as plain tensors
            saved = unpack(saved)
            pending = saved["wrappers"][0]["pending"]
            pending.update({i: value.to_local() for i, value in pending.items()})
        wrapper.discard()
        wrapper.load_state_dict(saved)
        assert wrapper.num_draws == 1
        train(first, wrapper, data[16:], rank)
        for a, b in zip(full(first), full(whole), strict=True):
            assert torch.equal(a, b)
