"""Which ranks train the same parameters, and do their gradients agree?

Data-parallel ranks are those of the modules that replicate or shard the parameters
(``DistributedDataParallel``, ``fully_shard``, the older ``FullyShardedDataParallel``), or of a
``process_group`` that is given.  No other ranks are waited for: pipeline stages and separate
trainings in one job know nothing of each other.
"""

import gc
import math
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from gqc.gradients import is_sharded

LOOKS = 2  # gradients that are compared: local ones differ from the first draw on
SAME = 1e-5  # relative: equal sums have equal norms, unless unequal cards use other kernels
PATIENCE = 10.0  # seconds to wait for another rank's draw, which comes right after its backward
ALONE_AT_DRAW = (
    "rank {} has made no draw {} for {} to compare its gradient with: every rank must call step() "
    "as often as the others, since they decide alike"
)
TORCH_HOOKS = "torch.distributed.algorithms"
FLAT_SHARDS = (
    "{} of FullyShardedDataParallel (FSDP1): each rank has a part of the gradient that looks like "
    "a whole one, and they would decide apart. Shard with torch.distributed.fsdp.fully_shard "
    "(FSDP2){}"
)
HOOKED = (
    'accumulate="grad" under a DDP communication hook ({}): it acts on the running sum at every '
    "draw, and what compresses rounds that again and again (in float16 2048 + 1 + 1 is 2048). Pass "
    'accumulate="buffer", where it acts on each draw alone, or remove the hook'
)

WAYS = ("step() without a weight", "step(weight=...)")
MIXED = (
    "{} after {} in one window: nothing says how they compare. Give all of them a weight, the "
    "tokens or examples of this rank's microbatch, or none"
)
_made: Counter[str] = Counter()

DIFFERENT = "the ranks' gradients differ (norm {:.6g} here, {:.6g} of rank {} at its draw {}): "
OTHER_NOISE = (
    "UPGD's generators differ over the ranks (state {:.0f} here, {:.0f} on rank {}), whose weights "
    "would drift apart: give generator= the same seed on all of them, or leave it out"
)

LOCAL = (
    "{} would decide or step apart on them, and each rank train another model. They were left "
    "local, by DDP.no_sync() or by parameters that nobody reduces. Leave no_sync() out, at least "
    "where a window is decided on; with a buffer reduce every draw"
)
JOINED = (
    "inside DDP.join(): a rank whose data ended makes no draws, and its windows part from those of "
    "the others. Give all as many microbatches, or pass throw_on_early_termination=True to join()"
)
CAN_REDUCE = ". Or keep no_sync() and pass reduce_at_step=True"


class Ranks:
    """Ranks that train the same parameters on their own parts of the data.

    Attributes:
        groups: process groups that are reduced over in turn; none: this process is alone.
        modules: what replicates or shards the parameters.
        is_known: False where there are other processes, and nothing says whether they train the
            same parameters.
        size: how many ranks there are.
    """

    def __init__(
        self, groups: Sequence[Any] = (), modules: Sequence[Any] = (), is_known: bool = True
    ) -> None:
        self.groups, self.modules, self.is_known = groups, modules, is_known
        self.size = math.prod(torch.distributed.get_world_size(group) for group in groups)
        names = [group.group_name for group in groups]
        self._numbers = [_made[name] for name in names]  # how many others of each came before
        _made.update(names)

    def require(self, what: str) -> Self:
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

    def average(
        self, params: list[Tensor], sums: dict[Tensor, Tensor], zeros: Callable[[Tensor], Tensor]
    ) -> dict[Tensor, Tensor]:
        """Average the local gradients ``sums`` of ``params``, which all ranks have in one order.

        Returns: gradient of each parameter that has one on *any* rank; a rank without it adds what
            ``zeros`` makes.
        """
        if self.size == 1:
            return sums
        if is_sharded(params):
            raise TypeError("sharded parameters: FSDP2 reduces their gradients itself")
        has = self.sum([float(p in sums) for p in params], params[0].device)
        anywhere = [p for p, count in zip(params, has, strict=True) if count]
        averaged = {p: sums[p] if p in sums else zeros(p) for p in anywhere}
        alike: dict[tuple, list[Tensor]] = {}
        for grad in averaged.values():
            alike.setdefault((grad.device, grad.dtype), []).append(grad)
        for grads in alike.values():  # one message a dtype and device
            flat = _flatten_dense_tensors(grads)
            for group in self.groups:
                torch.distributed.all_reduce(flat, group=group)
            flat /= self.size
            for grad, mean in zip(grads, _unflatten_dense_tensors(flat, grads), strict=True):
                grad.copy_(mean)
        return averaged

    def refuse_rounded_sums(self) -> None:
        """Refuse hooks of torch's that compress the sum in ``.grad``; warn of those unknown."""
        for module in self.replicas():
            hooks = [(hook.__module__, hook.__name__) for hook, _ in module._comm_hooks]
            if (built_in := module._get_ddp_logging_data().get("comm_hook")) == "FP16_COMPRESS":
                hooks.append((TORCH_HOOKS, built_in))
            for where, name in hooks:
                if where.startswith(TORCH_HOOKS) and name != "allreduce_hook":
                    raise RuntimeError(HOOKED.format(name))
                if name != "allreduce_hook":
                    warnings.warn(HOOKED.format(name), stacklevel=2)

    def refuse_different(self, number: float, look: int, message: str) -> None:
        """Compare ``number`` with that of the next rank at its draw ``look``.

        Through the process group's store: one that makes no draw is waited for once (and warned
        of), and blocks nobody.  ``message`` takes both numbers, the other rank and ``look``.
        """
        own = torch.distributed.get_rank()
        store = torch.distributed.distributed_c10d._get_default_store()
        for group, place in zip(self.groups, self._numbers, strict=True):
            ranks = torch.distributed.get_process_group_ranks(group)
            name = f"gqc/{group.group_name}/{place}/{look}/"
            store.set(f"{name}{own}", repr(number))
            other = ranks[(ranks.index(own) + 1) % len(ranks)]
            try:
                store.wait([f"{name}{other}"], timedelta(seconds=PATIENCE))
            except torch.distributed.DistStoreError:
                warnings.warn(ALONE_AT_DRAW.format(other, look, own), stacklevel=2)
                continue
            theirs = float(store.get(f"{name}{other}"))
            if not math.isclose(number, theirs, rel_tol=SAME) and repr(number) != repr(theirs):
                raise RuntimeError(message.format(number, theirs, other, look))

    def replicas(self) -> Iterator[Any]:
        """The ``DistributedDataParallel`` modules."""
        kind = nn.parallel.DistributedDataParallel
        return (module for module in self.modules if isinstance(module, kind))


ALONE = Ranks()  # without torch.distributed


def is_on() -> bool:
    """Is ``torch.distributed`` in use?"""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def ranks_of(wrapper: Any) -> Ranks:
    """The data-parallel ranks of the wrapper's parameters: its ``process_group`` if it has one.

    Looks through the modules that are alive, once some milliseconds.  It does not see modules that
    ``gc.freeze()`` has put aside.

    Raises: RuntimeError: they do so in a way that makes its decisions or sums wrong.
    """
    if not is_on():
        return ALONE
    modules = list(_owners(wrapper._params()))
    groups: list[Any] = [] if wrapper.process_group is None else [wrapper.process_group]
    for module in () if groups else modules:
        groups += [g for g in _groups_of(module) if not any(g is known for known in groups)]
    ranks = Ranks(groups, modules, bool(groups) or torch.distributed.get_world_size() == 1)
    if wrapper.reduce_at_step and not groups:
        ranks = Ranks([torch.distributed.group.WORLD])
    must_look = wrapper.needs_gradient or wrapper.clip_norm or wrapper.changes_gradient
    if are_parts(ranks.modules, ranks.groups) and (must_look or wrapper._is_checked()):
        remedy = "" if must_look else ', or pass nonfinite="ignore"'
        raise RuntimeError(FLAT_SHARDS.format(type(wrapper).__name__, remedy))
    if wrapper.sums_in_grad and not wrapper.reduce_at_step:
        ranks.refuse_rounded_sums()
    return ranks


def refuse_flat_shards(name: str, params: Sequence[Tensor]) -> None:
    """Raise RuntimeError where FSDP1 gave this rank a part of ``params`` that looks whole."""
    for module in _owners(params) if is_on() else ():
        if are_parts([module], _groups_of(module)):
            raise RuntimeError(FLAT_SHARDS.format(name, ""))


def refuse_different_noise(params: Sequence[Tensor], generator: torch.Generator) -> None:
    """Raise RuntimeError where ranks of DDP, which replicate ``params``, have other generators."""
    for module in _owners(params) if is_on() else ():
        state = zlib.crc32(bytes(generator.get_state().tolist()))
        Ranks(_groups_of(module)).refuse_different(float(state), 1, OTHER_NOISE)


def are_parts(modules: Sequence[Any], groups: Sequence[Any]) -> bool:
    """Has FSDP1 given each rank a part of the gradients that looks like whole ones?"""
    strategies = (getattr(module, "sharding_strategy", None) for module in modules)
    is_sharded = any(s is not None and s.name != "NO_SHARD" for s in strategies)
    return is_sharded and math.prod(map(torch.distributed.get_world_size, groups)) > 1


def weigh(wrapper: Any, weight: float | Tensor | None) -> tuple[float, float]:
    """Weight of a draw over all ranks, and its unit (:mod:`gqc.wrappers.window`).

    Raises: ValueError, alike on all ranks: a weight that the gradients cannot be weighed with.
    """
    window, is_sum, default = wrapper._window, wrapper.loss == "sum", float(wrapper.default_weight)
    if weight is None and wrapper._ranks is ALONE and not (is_sum or window.is_weighted):
        window.check_unit(default, default, 1.0)
        return default, default
    together = wrapper.ranks  # at the first draw it refuses what cannot be right with any weight
    joins = [module._join_config for module in together.replicas()]
    if together.size > 1 and any(j.enable and not j.throw_on_early_termination for j in joins):
        raise RuntimeError(JOINED)
    is_mixed = window.num_draws > 0 and window.is_weighted is (weight is None)
    if is_mixed and not wrapper.counts_examples:
        raise ValueError(MIXED.format(*(WAYS if weight is None else reversed(WAYS))))
    if weight is None:
        if is_sum and not wrapper.counts_examples:
            raise ValueError('loss="sum" needs step(weight=...), the tokens that were summed over')
        unit = float(together.require('loss="sum"').size) if is_sum else default
        window.check_unit(default, unit, 1.0)
        return default, unit
    own, ranks = float(weight), together.require("step(weight=...)").size
    numbers = [own, own * own, float(own > 0)]
    total, squares, positive = together.sum(numbers, window.params[0].device)
    if not (0 < total < math.inf and own >= 0) or (not is_sum and positive < ranks):
        raise ValueError(
            f"weight={own!r} (over all ranks {total!r}): expected a finite number > 0; leave out "
            "the step() of an empty microbatch"
        )
    are_local = is_sum or (wrapper.reduce_at_step and not wrapper.sums_in_grad)
    if not are_local and squares * ranks > total * total * (1 + 1e-9):
        raise ValueError(
            f"weight={own!r}, {total / ranks!r} on average over the ranks, whose mean losses were "
            'averaged as if of equal weights. Give the wrapper loss="sum" and sum losses of tokens'
        )
    unit = float(ranks) if is_sum else own * ranks
    window.check_unit(own, unit, ranks)
    return total, unit


def compare(wrapper: Any) -> None:
    """Refuse a gradient that the ranks do not have in common, at the first looks at one."""
    ranks = wrapper.ranks
    if ranks.size == 1 or wrapper._is_wrapped or wrapper.reduce_at_step:
        return
    message = LOCAL.format(type(wrapper).__name__)
    message += "" if wrapper.needs_gradient else CAN_REDUCE
    if not all(module.require_backward_grad_sync for module in ranks.replicas()):
        raise RuntimeError(f"inside DDP.no_sync(): {message}")
    message = DIFFERENT + message
    if wrapper._looks and wrapper.grad_norm is not None:
        wrapper._looks -= 1
        ranks.refuse_different(wrapper.grad_norm, LOOKS - wrapper._looks, message)


def _owners(params: Sequence[Tensor]) -> Iterator[Any]:
    """Modules alive that replicate or shard any of ``params``."""
    kinds: tuple[type, ...] = (nn.parallel.DistributedDataParallel,)
    if fsdp := sys.modules.get("torch.distributed.fsdp"):  # not imported: nothing was sharded
        kinds += (fsdp.FullyShardedDataParallel, fsdp.FSDPModule)
    ours, things = set(map(id, params)), gc.get_objects()
    # The type, not isinstance: proxies among the objects answer for what they stand for.
    owners = {kind for kind in set(map(type, things)) if issubclass(kind, kinds)}
    for thing in things:
        if type(thing) in owners and any(id(p) in ours for p in thing.parameters()):
            yield thing


def _groups_of(module: Any) -> list[Any]:
    if hasattr(module, "process_group"):  # DDP, FSDP1
        return [module.process_group]
    infos = [part.mesh_info for part in module._get_fsdp_state()._fsdp_param_groups]
    names = ("shard_process_group", "replicate_process_group")
    groups = [getattr(info, name, None) for info in infos for name in names]
    return [group for group in groups if group is not None]
