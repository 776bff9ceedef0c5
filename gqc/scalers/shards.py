"""Sums over the shards of distributed tensors, so that every rank sees the same statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ShardSums:
    """Adds up per-tensor numbers of the ranks that hold shards of a ``DTensor``.

    Args:
        params: plain tensors (left alone) and ``DTensor`` (summed over the mesh dimensions that
            shard them; replicated dimensions hold the whole sum already).
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        groups: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
        for index, param in enumerate(params):
            mesh = getattr(param, "device_mesh", None)
            if mesh is not None:
                placements: Any = param.placements  # type: ignore[attr-defined]
                sharded = tuple(i for i, p in enumerate(placements) if not p.is_replicate())
                groups.setdefault((mesh, sharded), []).append(index)
        self._groups = [(key, index) for key, index in groups.items() if key[1]]

    @property
    def is_sharded(self) -> bool:
        """Does another rank hold a part of any tensor?"""
        return bool(self._groups)

    def reduce(self, values: Tensor) -> Tensor:
        """Sum ``values`` [..., T] over shards; the same tensor back when nothing is sharded."""
        for (mesh, sharded), index in self._groups:
            where = torch.tensor(index, device=values.device)
            block = values.index_select(-1, where)
            for dim in sharded:
                torch.distributed.all_reduce(block, group=mesh.get_group(dim))
            values = values.index_copy(-1, where, block)
        return values
