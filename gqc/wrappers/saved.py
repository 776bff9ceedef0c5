"""Checkpoints under ``torch.distributed``: what its own checkpoint functions keep, and reshard.

``torch.distributed.checkpoint`` saves ``DTensor`` shard by shard and takes plain tensors of the
ranks for copies of each other; it loads only what the object that loads has already; and
``get_optimizer_state_dict`` keeps the entries ``"state"`` and ``"param_groups"`` alone.  So with a
process group a wrapper's ``state_dict`` has, in place of the entry ``"wrappers"``:

- ``state[i]["wrapper_sum_k"]``: pending sum of the sharded parameter i in wrapper k (0 is the
  innermost), a ``DTensor``; zeros where there is none, so that there is room to load one.
- ``state[i]["wrappers"]``: pending sums of a parameter that is no ``DTensor``, in wrappers that
  have one.
- ``param_groups[0]["wrappers"]``: the rest, of each wrapper.
- ``param_groups[0]["wrapper_k_of_rank_r_of_W"]``: what belongs to the shards of one rank, and can
  not be read by another number of ranks.

The last three are bytes, since nothing else with an inner structure is saved and loaded as one.
"""

import io
from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.gradients import local, shard, wide

WRAPPERS = "wrappers"
NOTHING = b"0"  # torch.load(weights_only=True) refuses empty bytes
SUM = "wrapper_sum_{}"
OWN_RANK = "wrapper_{}_of_rank_{}_of_{}"
NOT_LOADED = (
    "the file holds {} that did not come with it: torch.distributed.checkpoint loads only what an "
    "object has already. Load through get_optimizer_state_dict(model, wrapper) of a new wrapper "
    "and set_optimizer_state_dict(model, wrapper, ...), without flatten_optimizer_state_dict"
)
ONE_RANKS_DRAWS = (
    "pending draws of rank {} given to rank {} (of {}): with reduce_at_step=True, or after a no of "
    "closes_next(), a rank's sum is its own until the step. Let every rank save and load its own "
    "file, or call wrapper.reduce_pending() on every rank before one of them saves"
)
SAVED_ALONE = (
    "{} pending draws of this rank alone are in this checkpoint, which no other rank can load: "
    "call wrapper.reduce_pending() on every rank first, or let each save its own (said once)"
)


def pack(state: dict[str, Any], params: Sequence[Tensor]) -> dict[str, Any]:
    """A state with the entry ``"wrappers"`` -> the same without it, see the module."""
    owns = [{**own} for own in state[WRAPPERS]]
    entries = {i: {**entry} for i, entry in state["state"].items()}
    first = {**state["param_groups"][0]}
    num_states = sum(map(bool, entries.values()))
    pending = [own.pop("pending") for own in owns]
    for depth, (own, sums) in enumerate(zip(owns, pending, strict=True)):
        own["summed"], own["num_states"] = sorted(sums), num_states
        if own.pop("extra_is_of_rank", False):
            world = torch.distributed.get_world_size()
            key = OWN_RANK.format(depth, torch.distributed.get_rank(), world)
            first[key] = freeze([own["counts"], own.pop("extra")])
    for i, param in enumerate(params):
        if not param.requires_grad and not any(i in sums for sums in pending):
            continue
        entry, is_sharded = entries.setdefault(i, {}), hasattr(param, "device_mesh")
        sums_here = {k: sums[i] for k, sums in enumerate(pending) if i in sums}
        entry[WRAPPERS] = NOTHING if is_sharded or not sums_here else freeze(sums_here)
        if is_sharded:
            rooms = (_room(param, sums_here.get(k)) for k in range(len(owns)))
            entry.update({SUM.format(k): room for k, room in enumerate(rooms)})
    first[WRAPPERS] = freeze(owns)
    rest = {k: v for k, v in state.items() if k != WRAPPERS}
    return {**rest, "state": entries, "param_groups": [first, *state["param_groups"][1:]]}


def unpack(state: dict[str, Any]) -> dict[str, Any]:
    """What :func:`pack` was given; any other state unchanged, without its mark of a wrapper."""
    groups = state.get("param_groups") or [{}]
    first = {**groups[0]}
    packed = first.pop(WRAPPERS, None)
    if WRAPPERS in state or not isinstance(packed, bytes):
        return {**state, "param_groups": [first, *groups[1:]]} if packed else state
    owns = thaw(packed)
    names = list(chain.from_iterable(group["params"] for group in groups))
    entries = {name: {**entry} for name, entry in state["state"].items()}
    join_numbers(entries)
    plain = {name: thaw(entry.pop(WRAPPERS, NOTHING)) for name, entry in entries.items()}
    for depth, own in enumerate(owns):
        summed, own["pending"] = own.pop("summed"), {}
        for i, name in enumerate(names):
            shards = entries.get(name, {}).pop(SUM.format(depth), None)
            value = plain.get(name, {}).get(depth) if shards is None else shards
            if i in summed and value is not None:
                own["pending"][i] = value
        if len(own["pending"]) < len(summed):
            raise ValueError(NOT_LOADED.format(f"draws of {len(summed)} parameters"))
    _take_own_ranks(owns, first)
    inner = {name: entry for name, entry in entries.items() if entry}
    for own in owns:
        if len(inner) < (num := own.pop("num_states")):
            raise ValueError(NOT_LOADED.format(f"the optimizer's state of {num} parameters"))
    return {**state, "state": inner, "param_groups": [first, *groups[1:]], WRAPPERS: owns}


def check_order(*groups: Sequence[dict[str, Any]]) -> None:
    """Raises: ValueError: the names in a file are those here, in another order."""
    there, here = ([n for g in each for n in g.get("param_names", ())] for each in groups)
    if there != here and sorted(there) == sorted(here):
        raise ValueError(
            f"state of parameters in the order {there[:3]}, ... given to {here[:3]}, ...: what a "
            "wrapper keeps of each goes by its place. Make the groups in the same order"
        )


def check_shapes(params: Sequence[Tensor], sums: dict[int, Tensor]) -> None:
    """Raises: ValueError: pending gradients of a file that are not those of ``params``."""
    for index, value in sums.items():
        param = params[index] if index < len(params) else None
        shapes = [] if param is None else [param.shape, shard(param).shape]
        if value.shape not in shapes:
            here = None if param is None else tuple(shapes[1])
            raise ValueError(
                f"pending gradient of shape {tuple(value.shape)} for parameter {index} of {here}"
            )


def _take_own_ranks(owns: list[dict[str, Any]], first: dict[str, Any]) -> None:
    """Move what belongs to this rank into its wrapper's state; forget that of others."""
    found = {key: first.pop(key) for key in [*first] if key.startswith("wrapper_")}
    for depth, own in enumerate(owns):
        if "extra" in own:
            continue
        on = torch.distributed.is_available() and torch.distributed.is_initialized()
        ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if on else (0, 1)
        key = OWN_RANK.format(depth, *ranks)
        counts, own["extra"] = thaw(found.get(key, NOTHING)) or (None, None)
        if counts != own["counts"]:  # of another rank, or of the wrapper that loads
            raise ValueError(
                f"the statistics of {own['class']} belong to shards of other ranks: expected "
                f"{key!r}, found {sorted(found)}. Load with as many ranks as have saved"
            )


def join_numbers(entries: dict[Any, Any]) -> None:
    """Move what ``torch.distributed.checkpoint`` put under the number as a string: no tensors."""
    for name in [n for n in entries if isinstance(n, str) and n.isdigit() and int(n) in entries]:
        entries[int(name)].update(entries.pop(name))


def freeze(value: Any) -> bytes:
    """Return ``value`` as bytes, which are saved and loaded as one."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def thaw(data: bytes) -> Any:
    """Return what :func:`freeze` was given; an empty dict of `NOTHING`."""
    if data == NOTHING:
        return {}
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _room(param: Tensor, total: Tensor | None) -> Tensor:
    """The sum in float32 or wider, whatever way it was summed."""
    zeros = torch.zeros_like(param, dtype=wide(param.dtype), requires_grad=False)
    return zeros if total is None else total.to(zeros.dtype)


def is_asked_for_state(optimizer: Optimizer) -> bool:
    """Is this call of ``step`` one by which ``get_optimizer_state_dict`` makes a first state?

    It gives a new optimizer gradients of zeros, and a learning rate of 0.
    """
    if optimizer.state or any(group.get("lr", 1) != 0 for group in optimizer.param_groups):
        return False
    params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    grads = [p.grad for p in params]
    if not grads or any(grad is None for grad in grads):
        return False
    return not any(bool(grad.any()) for grad in local(grads))


def answers(wrapper: Any) -> bool:
    """Was this step such a request?  Then the state is made, and forgotten at the first draw."""
    if wrapper._is_wrapped or not is_asked_for_state(wrapper.innermost):
        return False
    make_state(wrapper.innermost)
    wrapper._has_first_state = True
    for param in wrapper._params():
        param.grad = None
    return True


@torch.no_grad()
def make_state(optimizer: Any) -> None:
    """Give a new optimizer the state that its first step would make, with values to be replaced.

    A step with zero gradients and a learning rate of 0, without hooks; parameters, gradients and
    groups are then put back.
    """
    params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    kept = [(p, p.detach().clone(), p.grad) for p in params]
    groups = [{**group} for group in optimizer.param_groups]
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    optimizer._optimizer_step_pre_hooks = OrderedDict()
    optimizer._optimizer_step_post_hooks = OrderedDict()
    was_called = getattr(optimizer, "_opt_called", None)
    try:
        for param in params:
            param.grad = torch.zeros_like(param)
        for group in optimizer.param_groups:
            if (rate := group.get("lr")) is not None:
                group["lr"] = torch.zeros_like(rate) if isinstance(rate, Tensor) else 0.0
        optimizer.step()
    finally:
        optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks = hooks
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group.update(before)
        for param, value, grad in kept:
            param.copy_(value)
            param.grad = grad
        if was_called is not None:
            optimizer._opt_called = was_called


def like(param: Tensor, value: Any) -> Tensor:
    """``value``, whole or this rank's shard, on the device of ``param`` and sharded as it is."""
    here = shard(param)
    if here is param:
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        return whole.to(here.device, copy=True)
    from torch.distributed.tensor import DTensor, distribute_tensor

    sharded: Any = param
    mesh, placements = sharded.device_mesh, sharded.placements
    if isinstance(value, DTensor):
        value = value.redistribute(placements=placements).to_local()
    elif value.shape != here.shape:  # a whole one: every rank cuts its part out of it
        whole = value.to(here.device)
        value = distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()
    own, shape, stride = value.to(here.device, copy=True), sharded.shape, sharded.stride()
    return DTensor.from_local(own, mesh, placements, shape=shape, stride=stride)


def warn_of_lost_schedules(lost: tuple[str, ...], copied: Any, *_: Any) -> None:
    """Warn where a copy of a wrapper draws without the schedules that the original steps."""
    if missing := [key for key in lost if key not in copied.attached]:
        copied._warn_once(
            f"a copy of a {type(copied).__name__} has no schedule of {', '.join(missing)} attached "
            "and keeps its value: copy both, copy.deepcopy((wrapper, schedule)), and attach() the "
            "copied schedule, or step() it after each draw"
        )
