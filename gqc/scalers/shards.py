"""Sums over the shards of distributed tensors, so that every rank sees the same statistics."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gqc.gradients import by_mesh
from gqc.ranks import refuse_flat_shards


class ShardSums:
    """Adds up per-tensor numbers of the ranks that hold shards of a ``DTensor``.

    Args:
        params: plain tensors (left alone) and ``DTensor`` (summed over the mesh dimensions that
            shard them; replicated dimensions hold the whole sum already).
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        refuse_flat_shards("VarianceGradientScaler", params)
        self._groups = [(key, [*shards]) for key, shards in by_mesh(params).items() if key[1]]
        self.is_sharded = bool(self._groups)  #: does another rank hold a part of any tensor?
        self.params = list(params) if self._groups else []

    def reduce(self, values: Tensor) -> Tensor:
        """Sum ``values`` [..., T] over shards; the same tensor back when nothing is sharded."""
        for (mesh, sharded), index in self._groups:
            where = torch.tensor(index, device=values.device)
            block = values.index_select(-1, where)
            for dim in sharded:
                torch.distributed.all_reduce(block, group=mesh.get_group(dim))
            values = values.index_copy(-1, where, block)
        return values


def spread(
    lists: dict[str, list[Tensor]], params: Sequence[Any], has_elements: bool
) -> dict[str, list[Tensor]]:
    """Statistics of this rank's shards, as ``torch.distributed.checkpoint`` may save them.

    It takes plain tensors of the ranks for copies of each other.  A number for each element becomes
    a ``DTensor`` laid out as its parameter, which other numbers of ranks can read too; anything
    else (not ``has_elements``) gets this rank's own name.
    """
    if not has_elements:
        return {name + _of_rank(params): tensors for name, tensors in lists.items()}
    return {
        name: [_like(param, tensor) for param, tensor in zip(params, tensors, strict=True)]
        for name, tensors in lists.items()
    }


def gather(state: dict[str, Any], names: Sequence[str], params: Sequence[Any]) -> dict[str, Any]:
    """What :func:`spread` was given for ``names``; a state of plain tensors unchanged.

    Raises: ValueError: the statistics belong to shards of other ranks.
    """
    state = {**state}
    for name in names:
        found = [key for key in state if key.startswith(f"{name}_of_rank_")]
        own = name + _of_rank(params)
        if found and own not in found:
            raise ValueError(
                f"statistics belong to shards of other ranks: expected {own!r}, found {found}. "
                "Load with as many ranks as have saved, or train with estimator='elementwise', "
                "whose statistics any number of ranks can load"
            )
        if found:
            state[name] = state.pop(own)
        if name in state:
            state[name] = [getattr(t, "_local_tensor", t).reshape(-1) for t in state[name]]
    return state


def _of_rank(params: Sequence[Any]) -> str:
    sizes = [param.device_mesh.size() for param in params if hasattr(param, "device_mesh")]
    return f"_of_rank_{torch.distributed.get_rank() if sizes else 0}_of_{max(sizes, default=1)}"


def _like(param: Any, tensor: Tensor) -> Tensor:
    """A flat local tensor as a ``DTensor`` of the shape and placements of its parameter."""
    if not hasattr(param, "device_mesh"):
        return tensor
    from torch.distributed.tensor import DTensor

    pair = (2,) if param.is_complex() else ()
    shape = torch.Size((*param.shape, *pair))
    stride = torch.empty(shape, device="meta").stride()
    shard = tensor.view(*param._local_tensor.shape, *pair)
    mesh, placements = param.device_mesh, param.placements
    return DTensor.from_local(shard, mesh, placements, shape=shape, stride=stride)
