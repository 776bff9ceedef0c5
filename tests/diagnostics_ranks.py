"""What each of two ranks measures on sharded gradients; started by ``test_diagnostics.py``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from gqc.diagnostics import ConsecutiveCosine, NoisePerTensor, RunningNorm


def measure(draws: list[list[Tensor]]) -> dict[str, list]:
    """All three streaming measurements, as plain numbers."""
    neighbours, running = ConsecutiveCosine(), RunningNorm()
    noise = NoisePerTensor([str(k) for k in range(len(draws[0]))])
    cosines = []
    for grads in draws:
        cosines.append(neighbours.update(grads))
        running.update(grads)
        noise.update(grads)
    noise.close()
    moments = [number for pair in noise.moments().values() for number in pair or ()]
    return {"cosines": cosines[1:], "norms": running.norms, "moments": moments}


def gradients(num: int = 4) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randn(shape, generator=generator) for shape in ((6, 3), (5,))] for _ in range(num)
    ]


def main(rank: int, folder: str) -> None:
    """One tensor sharded in unequal parts, one replicated plain tensor beside it."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    mesh = init_device_mesh("cpu", (2,))
    draws = [[a, distribute_tensor(b, mesh, [Shard(0)])] for a, b in gradients()]
    Path(folder, f"rank{rank}").write_text(json.dumps(measure(draws)))
    torch.distributed.barrier()  # a rank that leaves early breaks the other's connection
    torch.distributed.destroy_process_group()
    os._exit(0)  # a gloo thread aborts the interpreter's own exit about once in twenty runs
