"""Faults of torch-gqc 0.10.4 as an optimizer in a loop, each measured: its answer and ours.

Nothing is asserted here: ``test_differences.py`` does that, ``differences.py`` makes a table of it.
"""

from __future__ import annotations

import copy
import functools
import io
import math
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradient_quality_control as peer
import torch
from peer.both import THRESHOLD, backward, our_sbc, outcome, peer_gnts, peer_sbc, scalar
from torch import Tensor
from torch.optim import SGD

import gqc

LATE = "Detected call of `lr_scheduler.step"  # torch's warning, of the peer's own loop


def torch_scheduler() -> tuple[str, str]:
    def attach(wrapper: Any) -> str:
        return outcome(lambda: torch.optim.lr_scheduler.LinearLR(wrapper), "accepted")

    ours = gqc.OptimizerWrapperGNTS(SGD([scalar()], lr=1.0))
    return attach(peer_gnts(scalar())), attach(ours)


def scheduler_in_a_window() -> tuple[int, int]:
    """Warnings of torch from an lr scheduler that is stepped once a microbatch."""

    def count(make: Callable[[Tensor, float], Any]) -> int:
        param = scalar()
        wrapper = make(param, 3.0)
        scheduler = torch.optim.lr_scheduler.LinearLR(wrapper.optimizer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(6):
                backward(param, 1.0)
                wrapper.step()
                scheduler.step()
        return sum(LATE in str(warning.message) for warning in caught)

    return count(peer_sbc), count(our_sbc)


def zero_grad_in_the_loop() -> tuple[str, str]:
    ours = gqc.OptimizerWrapperGNTS(SGD([scalar()], lr=1.0))
    return outcome(peer_gnts(scalar()).zero_grad, "cleared"), outcome(ours.zero_grad, "cleared")


def copies() -> tuple[tuple[str, str], tuple[str, str]]:
    def both(wrapper: Any) -> tuple[str, str]:
        pickled = outcome(lambda: pickle.loads(pickle.dumps(wrapper)), "works")
        return outcome(lambda: copy.deepcopy(wrapper), "works"), pickled

    return both(peer_gnts(scalar())), both(gqc.OptimizerWrapperGNTS(SGD([scalar()], lr=1.0)))


def clipped_draws() -> tuple[float, float]:
    """The step after 4 draws of the gradient 10, each clipped to 1 before ``step()``."""

    def run(make: Callable[[Tensor, float], Any]) -> float:
        param = scalar()
        wrapper = make(param, 4.0)
        for _ in range(4):
            backward(param, 10.0)
            torch.nn.utils.clip_grad_norm_([param], 1.0)
            wrapper.step()
        return -param.item()

    return run(peer_sbc), run(our_sbc)


def draw_without_backward() -> tuple[float, str]:
    """The step of a window of 2 with one gradient of 1: the second ``backward`` was skipped."""
    param = scalar()
    wrapper = peer_sbc(param, 2.0)
    backward(param, 1.0)
    wrapper.step(), wrapper.step()
    moved = -param.item()
    ours = our_sbc(scalar(), 2.0)
    backward(ours.param_groups[0]["params"][0], 1.0)
    ours.step()
    return moved, outcome(ours.step, "a step")


def unequal_microbatches() -> tuple[float, float]:
    """The step of mean losses over 7 and 1 examples whose gradients are 1 and 9: 2 by example."""

    def run(wrapper: Any, param: Tensor, given: Callable[[int], dict[str, int]]) -> float:
        for grad, count in ((1.0, 7), (9.0, 1)):
            backward(param, grad)
            wrapper.step(**given(count))
        return -param.item()

    theirs, ours = scalar(), scalar()
    return (
        run(peer_sbc(theirs, 2.0), theirs, lambda count: {}),
        run(our_sbc(ours, 8.0), ours, lambda count: {"weight": count}),
    )


def threshold_that_cannot_be_met() -> tuple[int, int]:
    """Warnings about twelve windows of gradients 1 under a threshold of 0.1, all forced."""

    def count(wrapper: Any, param: Tensor) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(12 * 4):
                backward(param, 1.0)
                wrapper.step()
        return len(caught)

    theirs, ours = scalar(), scalar()
    return (
        count(peer_gnts(theirs, 0.1, max_batch_draws=4), theirs),
        count(gqc.OptimizerWrapperGNTS(SGD([ours], lr=1.0), 0.1, max_draws=4), ours),
    )


def resume_in_mid_window() -> tuple[float, float]:
    """The gradient stepped with when gradients 1, 2, 3, 4 are cut by a resume after two."""

    def run(make: Callable[[Tensor, float], Any]) -> float:
        first, second = scalar(), scalar()
        before, after = make(first, 4.0), make(second, 4.0)
        for grad in (1.0, 2.0):
            backward(first, grad)
            before.step()
        file = io.BytesIO()
        torch.save(before.state_dict(), file)
        file.seek(0)
        after.load_state_dict(torch.load(file, weights_only=True))
        for grad in (3.0, 4.0):
            backward(second, grad)
            after.step()
        return -float(second.detach())

    return run(peer_sbc), run(our_sbc)


def smaller_max_draws() -> tuple[str, str]:
    def run(make: Callable[[Tensor, int], Any]) -> str:
        param = scalar()
        large, small = make(param, 64), make(param, 4)
        for _ in range(5):
            backward(param, 100.0)
            large.step()
        small.load_state_dict(copy.deepcopy(large.state_dict()))
        backward(param, 100.0)
        return outcome(small.step, "steps")

    def ours(param: Tensor, max_draws: int) -> Any:
        return gqc.OptimizerWrapperGNTS(SGD([param], lr=1.0), max_draws=max_draws)

    return run(lambda param, n: peer_gnts(param, max_batch_draws=n)), run(ours)


def batch_of_256() -> tuple[int | None, int | None]:
    """Draws of one example until a logical batch of 256 is stepped with."""

    def run(make: Callable[[Tensor, float], Any]) -> int | None:
        param = scalar()
        wrapper = make(param, 256.0)
        for number in range(1, 301):
            backward(param, 1.0)
            if wrapper.step():
                return number
        return None

    return run(peer_sbc), run(our_sbc)


def nan_microbatch() -> tuple[int | str, int | str]:
    """Microbatches until the parameters are NaN, the first having a NaN gradient."""

    def run(wrapper: Any, param: Tensor) -> int | str:
        for number in range(1, 201):
            backward(param, math.nan if number == 1 else 0.5)
            wrapper.step()
            if param.isnan().any():
                return number
        return "never"

    theirs, mine = scalar(), scalar()
    ours = gqc.OptimizerWrapperGNTS(SGD([mine], lr=1.0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="a NaN or infinite gradient")
        return run(peer_gnts(theirs), theirs), run(ours, mine)


def sixteen_bit_sum() -> tuple[float, float]:
    """The mean that is stepped with, of 1024 bfloat16 gradients that are all 1."""

    def run(make: Callable[[Tensor], Any]) -> float:
        param = torch.zeros(1, dtype=torch.bfloat16, requires_grad=True)
        wrapper = make(param)
        for _ in range(1024):
            backward(param, 1.0)
            wrapper.step()
        return -float(param.detach())

    def theirs(param: Tensor) -> Any:
        wrapper = peer.OptimizerWrapperSBC(SGD([param], lr=1.0), 1, max_batch_draws=1024)
        wrapper.param_groups[0]["logical_batch_size"] = 1024.0
        return wrapper

    return run(theirs), run(lambda param: our_sbc(param, 1024.0, max_draws=1024))


def reported_threshold() -> tuple[float, float]:
    """What statistics() says of groups with thresholds 1 and 3, of which 1 decides."""
    groups = [{"params": [scalar()]}, {"params": [scalar()]}]
    published = peer.OptimizerWrapperGNTS(SGD(groups, lr=1.0))
    ours = gqc.OptimizerWrapperGNTS(SGD([{"params": [scalar()]}, {"params": [scalar()]}], lr=1.0))
    for wrapper in (published, ours):
        for group, value in zip(wrapper.param_groups, (1.0, 3.0), strict=True):
            group[THRESHOLD] = value
    return published.statistics()[THRESHOLD + "*"], ours.statistics()[THRESHOLD]


def added_group() -> tuple[bool, bool]:
    """Has a group that was added a threshold (without which it can't be scheduled)?"""
    published, ours = peer_gnts(scalar()), gqc.OptimizerWrapperGNTS(SGD([scalar()], lr=1.0))
    for wrapper in (published, ours):
        wrapper.add_param_group({"params": [scalar()]})
    return THRESHOLD in published.param_groups[1], THRESHOLD in ours.param_groups[1]


def schedule_past_its_end() -> tuple[float, float]:
    """The threshold five microbatches after a cosine of 20 from 1 to 0 has ended."""
    param = scalar()
    published, schedule = peer.make_gnts_with_cosine_annealing_schedule(
        SGD([param], lr=1.0), 20, 0, initial_threshold=1.0, final_threshold=1e-9
    )
    ours = gqc.OptimizerWrapperGNTS(SGD([scalar()], lr=1.0))
    held = gqc.get_norm_threshold_cosine_annealing_with_warmup(ours, 0, 20, 1.0, 0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=LATE)
        for _ in range(25):
            schedule.step()
            held.step()
    return published.param_groups[0][THRESHOLD], ours.param_groups[0][THRESHOLD]


def scaled_norms() -> tuple[int | None, int | None]:
    """Draws at gradient norm 1 and threshold 2 when losses go through a GradScaler."""

    def run(wrapper: Any, param: Tensor, scaler: torch.amp.GradScaler) -> int | None:
        for number in range(1, 65):
            scaler.scale((param * 1.0).sum()).backward()
            if wrapper.step():
                return number
        return None

    theirs, mine = scalar(), scalar()
    scalers = [torch.amp.GradScaler("cpu") for _ in range(2)]
    ours = gqc.OptimizerWrapperGNTS(SGD([mine], lr=1.0), 2.0, grad_scaler=scalers[1])
    return run(peer_gnts(theirs, 2.0), theirs, scalers[0]), run(ours, mine, scalers[1])


def unscaled_twice() -> tuple[float, float]:
    """The mean of gradients 1 and 3 when the scaler steps the wrapper each microbatch."""
    theirs, mine = scalar(), scalar()
    scalers = [torch.amp.GradScaler("cpu") for _ in range(2)]
    published, ours = peer_sbc(theirs, 2.0), our_sbc(mine, 2.0, grad_scaler=scalers[1])
    for grad in (1.0, 3.0):
        scalers[0].scale((theirs * grad).sum()).backward()
        scalers[0].step(published)
        scalers[0].update()
        scalers[1].scale((mine * grad).sum()).backward()
        ours.step()
    return -float(theirs.detach()), -float(mine.detach())


def overflow_under_a_scaler() -> tuple[tuple[int, float], tuple[int, float]]:
    """Steps in the 200 microbatches after one Inf, and the loss scale then (from 65536)."""
    theirs, mine = scalar(), scalar()
    scalers = [torch.amp.GradScaler("cpu") for _ in range(2)]
    published, ours = peer_gnts(theirs), our_sbc(mine, 1.0, grad_scaler=scalers[1])
    for number in range(201):
        grad = math.inf if number == 0 else 1.0
        scalers[0].scale((theirs * grad).sum()).backward()
        scalers[0].step(published)
        scalers[0].update()
        scalers[1].scale((mine * grad).sum()).backward()
        ours.step()
    ends = [(published.num_steps, scalers[0].get_scale())]
    ends.append((ours.statistics()["steps"], scalers[1].get_scale()))
    return ends[0], ends[1]


@functools.cache  # two processes that import torch: seconds
def sharded_norm() -> tuple[float, float]:
    """Global norm that each of two ranks reads when they hold the shards (3) and (4)."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_sharded_norm, (folder,), nprocs=2)
        read = [tuple(map(float, file.read_text().split())) for file in Path(folder).glob("rank*")]
    if len(read) != 2 or read[0] != read[1]:
        raise RuntimeError(f"ranks disagree: {read}")
    return read[0][0], read[0][1]


def _sharded_norm(rank: int, folder: str) -> None:
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    shard = torch.tensor([3.0 + rank])
    mesh = init_device_mesh("cpu", (2,))
    ours = gqc.gradients.total_norm([DTensor.from_local(shard, mesh, [Shard(0)])])
    theirs = peer.OptimizerWrapperGNTS.merge_sharded_grad_norm(float(shard.norm()))
    Path(folder, f"rank{rank}").write_text(f"{theirs} {float(ours)}")
    torch.distributed.barrier()  # a rank that leaves early breaks the other's connection
    torch.distributed.destroy_process_group()
    os._exit(0)  # a gloo thread aborts the interpreter's own exit about once in twenty runs
