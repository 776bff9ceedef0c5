"""Sort a model's parameters into lists that one kernel call may take, and cut these for the cache.

Only tensors are handled here; what is done with them is in :mod:`gqc.upgd.base`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gqc.gradients import collect, wide
from gqc.upgd import published, utility


@dataclass
class Block:
    """A part of a batch: pieces of tensors, as parallel lists."""

    rows: list[int]  #: place in the batch of the parameter that each piece belongs to
    stored: list[Tensor]  #: the weights
    stored_grads: list[Tensor]
    kept: list[list[Tensor]]  #: state, utility first

    @cached_property
    def params(self) -> list[Tensor]:
        """The weights in the dtype of the state: copies of 16-bit ones."""
        return _cast(self.stored, self.kept[0][0].dtype)

    @cached_property
    def grads(self) -> list[Tensor]:
        return _cast(self.stored_grads, self.kept[0][0].dtype)

    def write_back(self) -> None:
        """Round ``params`` into the weights, where they are copies."""
        if self.params is not self.stored:
            torch._foreach_copy_(self.stored, self.params)


@dataclass
class Batch:
    """Parameters with a gradient that agree in group, device and dtype, as parallel lists."""

    group: dict[str, Any]
    device: torch.device
    dtype: torch.dtype  #: of state and arithmetic
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_published(self) -> bool:
        return str(self.group["normalization"]).endswith("_published")

    @property
    def maths(self) -> Any:
        """The functions of the formulas, which round as :mod:`gqc.upgd.utility` or as published."""
        return published if self.is_published else utility

    @property
    def is_row_wise(self) -> bool:
        """Are utilities scaled by norms along the last dimension, which needs whole tensors?"""
        return self.group["scope"] == "local" and self.group["normalization"].startswith("max")

    @property
    def steps(self) -> list[int]:
        return [state["step"] for state in self.states]

    @property
    def block_size(self) -> int:
        """Elements of a block at most; 0: a tensor each."""
        if self.device.type != "cpu":
            return sys.maxsize  # one kernel takes all and has nothing to gain
        return 0 if self.group["foreach"] is False else utility.BLOCK

    @property
    def is_shared(self) -> bool:
        """Do threads share the blocks that get noise?"""
        return 0 < self.block_size < sum(param.numel() for param in self.params)

    def blocks(self, kept: tuple[str, ...], piece: int | None = None) -> Iterator[Block]:
        """Cut the batch; ``kept`` names the state that comes along.

        Args:
            piece: see :func:`gqc.upgd.utility.blocks`.
        """
        columns = [self.params, self.grads]
        columns += [[state[key] for state in self.states] for key in kept]
        is_split = self.block_size > 0 and not self.is_row_wise
        cut = utility.blocks(columns, self.block_size, piece=piece, is_split=is_split)
        for rows, (stored, grads, *state) in cut:
            yield Block(rows, stored, grads, state)


def hand_out(work: Callable[..., None], items: Iterator[tuple[Any, ...]]) -> None:
    """``for item in items: work(*item)``, on as many threads as torch has.

    For work that torch does on the thread that calls it, as drawing noise.  Items are disjoint, so
    that the result does not depend on who does what.
    """
    workers = torch.get_num_threads()
    if workers == 1:
        for item in items:
            work(*item)
        return
    # whether gradients are recorded is each thread's own affair
    with ThreadPoolExecutor(workers, initializer=torch.set_grad_enabled, initargs=(False,)) as pool:
        for future in [pool.submit(work, *item) for item in items]:
            future.result()


def make_batches(groups: Iterable[dict[str, Any]]) -> list[Batch]:
    """Batches of all parameters that have a gradient, in their order.

    Raises: TypeError: a sparse gradient, a complex or a ``DTensor`` parameter.
    """
    batches: dict[Any, Batch] = {}
    groups, index = list(groups), 0
    collect([param for group in groups for param in group["params"]])  # refuses sparse gradients
    for place, group in enumerate(groups):
        for param in group["params"]:
            grad = param.grad
            if grad is not None and grad.numel():
                _check_kind(param, index)
                key = (place, param.device, param.dtype, grad.dtype)
                if key not in batches:
                    batches[key] = Batch(group, param.device, wide(param.dtype))
                batches[key].params.append(param)
                batches[key].grads.append(grad)
            index += 1
    return list(batches.values())


def _check_kind(param: Tensor, index: int) -> None:
    name = f"parameter {index} of shape {tuple(param.shape)}"
    if param.is_complex():
        raise TypeError(
            f"{name} is {param.dtype}: expected a real one, since utilities have to be ordered "
            "(optimize torch.view_as_real of it)"
        )
    if hasattr(param, "device_mesh"):  # an isinstance check would import torch.distributed
        raise TypeError(
            f"{name} is a DTensor: expected a plain tensor, since the utilities of other ranks' "
            "shards are not compared (DDP works, FSDP2 does not)"
        )


def _cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return tensors if tensors[0].dtype == dtype else [t.to(dtype) for t in tensors]
