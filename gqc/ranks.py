"""Which ranks train the same parameters, and do their gradients agree?

Data-parallel ranks are those of the modules that replicate or shard the parameters
(``DistributedDataParallel``, ``fully_shard``, the older ``FullyShardedDataParallel``), or of a
``process_group`` that is given.  No other ranks are waited for: pipeline stages and separate
trainings in one job know nothing of each other.
"""

from __future__ import annotations

import gc
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

LOOKS = 2  # gradients that are compared: local ones differ from the first draw on
SAME = 1e-5  # relative: equal sums have equal norms but for the kernels of unequal cards
PATIENCE = 10.0  # seconds to wait for another rank's draw, which comes right after its backward
ALONE_AT_DRAW = (
    "rank {} has made no draw {} for {} to compare its gradient with: every rank must call step() "
    "as often as the others, since they decide alike"
)
TORCH_HOOKS = "torch.distributed.algorithms"
BUILT_IN = ("FP16_COMPRESS",)
HOOKED = (
    'accumulate="grad" under a DDP communication hook ({}): it acts on the running sum at every '
    "draw, and what compresses rounds that again and again (in float16 2048 + 1 + 1 is 2048). Pass "
    'accumulate="buffer", where it acts on each draw alone, or remove the hook'
)


_made: Counter[str] = Counter()


@dataclass(frozen=True)
class Ranks:
    """Ranks that train the same parameters on their own parts of the data.

    Attributes:
        groups: process groups that are reduced over in turn; none: this process is alone.
        modules: what replicates or shards the parameters.
        is_known: False where there are other processes, and nothing says whether they train the
            same parameters.
        size: how many ranks there are.
    """

    groups: tuple[Any, ...] = ()
    modules: tuple[Any, ...] = ()
    is_known: bool = True
    size: int = field(init=False)
    numbers: tuple[int, ...] = field(init=False)  # how many others of each group came before

    def __post_init__(self) -> None:
        sizes = (torch.distributed.get_world_size(group) for group in self.groups)
        object.__setattr__(self, "size", math.prod(sizes))
        names = [group.group_name for group in self.groups]
        object.__setattr__(self, "numbers", tuple(_made[name] for name in names))
        _made.update(names)

    @property
    def has_flat_shards(self) -> bool:
        """Has FSDP1 given each rank a part of the gradients that looks like whole ones?"""
        strategies = (getattr(module, "sharding_strategy", None) for module in self.modules)
        is_sharded = any(s is not None and s.name != "NO_SHARD" for s in strategies)
        return is_sharded and self.size > 1

    def require(self, what: str) -> Ranks:
        """These ranks.  Raises: RuntimeError: nothing says which they are."""
        if self.is_known:
            return self
        raise RuntimeError(
            f"{what} under torch.distributed, where no DDP or FSDP module holds the parameters: "
            "pass process_group= to the wrapper, torch.distributed.group.WORLD if all processes "
            "train them together, or a group of this one alone"
        )

    def sum(self, values: list[float], device: torch.device) -> list[float]:
        """Each value summed over the ranks, in float64; where there are several the host waits."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        for group in self.groups:
            torch.distributed.all_reduce(tensor, group=group)
        return [float(value) for value in tensor.tolist()]

    def refuse_different(self, norm: float, look: int, message: str) -> None:
        """Compare ``norm`` with that of the next rank at its draw of the same number, ``look``.

        Through the process group's store: one that makes no draw is waited for once, and blocks
        nobody.  Raises: RuntimeError: the two differ.  Warns: UserWarning: it has made none.
        """
        own = torch.distributed.get_rank()
        store = torch.distributed.distributed_c10d._get_default_store()
        for group, number in zip(self.groups, self.numbers, strict=True):
            ranks = torch.distributed.get_process_group_ranks(group)
            name = f"gqc/{group.group_name}/{number}/{look}/"
            store.set(f"{name}{own}", repr(norm))
            other = ranks[(ranks.index(own) + 1) % len(ranks)]
            try:
                store.wait([f"{name}{other}"], timedelta(seconds=PATIENCE))
            except torch.distributed.DistStoreError:
                warnings.warn(ALONE_AT_DRAW.format(other, look, own), stacklevel=2)
                continue
            theirs = float(store.get(f"{name}{other}"))
            if not math.isclose(norm, theirs, rel_tol=SAME) and repr(norm) != repr(theirs):
                raise RuntimeError(
                    f"the ranks' gradients differ (norm {norm:.6g} here, {theirs:.6g} of rank "
                    f"{other} at its draw {look}): {message}"
                )


ALONE = Ranks()  # without torch.distributed


def is_on() -> bool:
    """Is ``torch.distributed`` in use?"""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def find_ranks(params: Sequence[Tensor], process_group: Any = None) -> Ranks:
    """The data-parallel ranks of ``params``: those of ``process_group`` if it is given.

    Looks through the modules that are alive, once some milliseconds.  It does not see modules that
    ``gc.freeze()`` has put aside.
    """
    if not is_on():
        return ALONE
    modules: tuple[Any, ...] = tuple(_owners(params))
    if process_group is not None:
        return Ranks((process_group,), modules)
    groups: list[Any] = []
    for module in modules:
        groups += [g for g in _groups_of(module) if not any(g is known for known in groups)]
    is_known = bool(groups) or torch.distributed.get_world_size() == 1
    return Ranks(tuple(groups), modules, is_known)


def refuse_flat_shards(ranks: Ranks, name: str, remedy: str) -> None:
    """Raises: RuntimeError: FSDP1 has given this rank a part of each gradient."""
    if ranks.has_flat_shards:
        raise RuntimeError(
            f"{name} of FullyShardedDataParallel (FSDP1): each rank has a part of the gradient "
            "that looks like a whole one, and they would decide apart. Shard with "
            f"torch.distributed.fsdp.fully_shard (FSDP2){remedy}"
        )


def refuse_rounded_sums(ranks: Ranks) -> None:
    """Raises: RuntimeError: a hook of torch's that compresses acts on the sum in ``.grad``.

    Warns: UserWarning: a hook does that of which it is not known whether it rounds.
    """
    for module in _of_kind(ranks, nn.parallel.DistributedDataParallel):
        hooks = [(hook.__module__, hook.__name__) for hook, _ in module._comm_hooks]
        if (built_in := module._get_ddp_logging_data().get("comm_hook")) in BUILT_IN:
            hooks.append((TORCH_HOOKS, built_in))
        for where, name in hooks:
            if name == "allreduce_hook":
                continue
            message = HOOKED.format(name)
            if where.startswith(TORCH_HOOKS):
                raise RuntimeError(message)
            warnings.warn(message, stacklevel=2)


def refuse_open_no_sync(ranks: Ranks, message: str) -> None:
    """Raises: RuntimeError: a decision, or a step, inside ``DDP.no_sync()``; costs nothing."""
    for module in _of_kind(ranks, nn.parallel.DistributedDataParallel):
        if not module.require_backward_grad_sync:
            raise RuntimeError(f"inside DDP.no_sync(): {message}")


def _of_kind(ranks: Ranks, kind: type) -> Iterator[Any]:
    return (module for module in ranks.modules if isinstance(module, kind))


def _owners(params: Sequence[Tensor]) -> Iterator[Any]:
    """Modules alive that replicate or shard any of ``params``."""
    kinds: tuple[type, ...] = (nn.parallel.DistributedDataParallel,)
    if fsdp := sys.modules.get("torch.distributed.fsdp"):  # not imported: nothing was sharded
        kinds += (fsdp.FullyShardedDataParallel, fsdp.FSDPModule)
    ours = set(map(id, params))
    for thing in gc.get_objects():
        # The type, not isinstance: proxies among the objects answer for what they stand for.
        if issubclass(type(thing), kinds) and any(id(p) in ours for p in thing.parameters()):
            yield thing


def _groups_of(module: Any) -> list[Any]:
    if hasattr(module, "process_group"):  # DDP, FSDP1
        return [module.process_group]
    groups = []
    for part in module._get_fsdp_state()._fsdp_param_groups:
        info = part.mesh_info
        groups += [
            group
            for name in ("shard_process_group", "replicate_process_group")
            if (group := getattr(info, name, None)) is not None
        ]
    return groups
