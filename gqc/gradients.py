r"""Batched operations on lists of gradients.

Norms are global: :math:`\|g\|=\sqrt{\sum_i\|g_i\|_2^2}` over every tensor of every group.  Each
function makes one pass over the elements with torch's ``_foreach`` kernels and leaves its result
on the device, so that the caller decides when the host waits.  Tensors may live on several devices,
have several dtypes, and be ``DTensor`` (FSDP2): plain and sharded ones may be mixed in one list.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

_dtype, _cdata = map(attrgetter, ("dtype", "_cdata"))
_num_holders = torch._C._storage_Use_Count
_one = torch.empty(0, device="cpu")
SOLE = _num_holders(_one.untyped_storage()._cdata)  # of memory that is one tensor's
T = TypeVar("T", bound=Tensor | None)
HALF = frozenset((torch.float16, torch.bfloat16))
DOUBLE = frozenset((torch.float64, torch.complex128))

# On the CPU a kernel call costs about a microsecond a tensor: up to so many elements in all, or in
# tensors of at most FEW, one copy and its norm take half the time of one norm a tensor.
SMALL = 2**18
FEW = 2**13

# One float32 sum of 1e8 squares is off by 1e-2 on the CPU.  In parts of this many elements the
# error stays at 1e-6, 5e-6 of 16-bit elements, 2e-5 where all are equal.  Parts of half the size
# make a norm of 1e7 elements a quarter slower.
CHUNK = 2**18


def collect(params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that ``params`` have, in order; parameters without one are left out.

    Raises: TypeError: a gradient is sparse (its norm would count absent rows, its mean would not).
    """
    return [grad for grad in settle(params) if grad is not None]


def settle(params: Sequence[Tensor], names: Sequence[str] = ()) -> list[Tensor | None]:
    """The gradient of each of ``params``, made whole and apart from the others in its place.

    Tensor parallelism leaves partial sums over ranks (a ``DTensor`` that is ``Partial``) for
    parameters that every rank holds whole but uses for a part of the sequence: they are reduced.
    Autograd leaves several parameters one memory where a sum hands a gradient on to them through
    views, as ``p[None] + q[None]`` does: they get copies.

    Raises: TypeError: as :func:`collect`.
    """
    grads = [param.grad for param in params]
    present = dense(grads, names)
    if is_sharded(present):
        for param, grad in zip(params, grads, strict=True):
            if _is_partial(grad):
                sharded: Any = param
                param.grad = grad.redistribute(placements=sharded.placements)  # type: ignore
    elif _are_sole(present):
        return grads
    shared = [] if is_apart(*present) else local(present)
    spans = sorted((grad.data_ptr(), grad.data_ptr() + grad.nbytes) for grad in shared)
    if any(start < end for (_, end), (start, _) in pairwise(spans)):
        for param in params:
            param.grad = None if param.grad is None else param.grad.clone()
    return [param.grad for param in params]


def dense(grads: Sequence[Tensor | None], names: Sequence[str] = ()) -> list[Tensor]:
    """:func:`collect` of gradients that were looked up already, one or None a parameter."""
    present = [grad for grad in grads if grad is not None]
    if {grad.layout for grad in present} - {torch.strided}:
        pairs = ((i, g) for i, g in enumerate(grads) if g is not None)
        index, grad = next((i, g) for i, g in pairs if g.layout is not torch.strided)
        name = names[index] if names else f"parameter {index} of shape {tuple(grad.shape)}"
        raise TypeError(
            f"{name} has a sparse gradient: expected a dense one (embeddings: sparse=False)"
        )
    return present


def is_sharded(tensors: Iterable[Tensor | None]) -> bool:
    """Is any of them a ``DTensor``?  (An isinstance check would import torch.distributed.)"""
    return any(hasattr(kind, "device_mesh") for kind in set(map(type, tensors)))


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    r"""Global L2 norm :math:`\sqrt{\sum_i \|t_i\|^2}` as a 0-dim tensor on the first device.

    Args:
        tensors: any shapes, devices and dtypes; 16-bit ones are summed in float32.
            ``DTensor``: the norm of the whole tensor, equal on all ranks (one all-reduce a mesh
            dimension that shards).
    Returns: 0-dim, float32 (float64 when a tensor has it); 0 for an empty list.  NaN or inf when an
        element is, and inf when the sum of squares overflows.
    """
    return norm_of_such(tensors)(tensors)


def norm_of_such(tensors: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    """:func:`total_norm` for ``tensors`` and for lists like it, whose kinds it does not look at.

    Like it are lists of the same length, whose tensors have the same shapes, dtypes and devices.
    """
    if not tensors:
        return lambda _: torch.zeros(())
    if is_sharded(tensors) or len({(t.dtype, t.get_device()) for t in tensors}) > 1:
        return lambda given: torch.linalg.vector_norm(tensor_norms(given))
    dtype, numels = wide(tensors[0].dtype), [*map(Tensor.numel, tensors)]
    if not is_on_host(tensors[0]):
        return lambda given: _norm_of(torch._foreach_norm([*given], 2, dtype=dtype))
    most = SMALL if sum(numels) <= SMALL else FEW
    few = [i for i, n in enumerate(numels) if n <= most]
    if len(few) < 2 or sum(numels[i] for i in few) > SMALL:
        few = []
    many = sorted(set(range(len(numels))) - set(few))
    join = torch.cat if all(tensors[i].dim() == 1 for i in few) else _flatten_dense_tensors
    if not many:
        return lambda given: torch.linalg.vector_norm(join([*given]), dtype=dtype)
    num = bool(few) + sum(max(1, math.ceil(numels[i] / CHUNK)) for i in many)
    norms = torch.empty(num, dtype=dtype.to_real(), device="cpu")
    places = norms.unbind()

    @torch.no_grad()
    def norm(given: Sequence[Tensor]) -> Tensor:
        parts = [join([given[i] for i in few])] if few else []
        for i in many:
            parts += given[i].reshape(-1).split(CHUNK) if numels[i] > CHUNK else (given[i],)
        for part, place in zip(parts, places, strict=True):
            torch.linalg.vector_norm(part, dtype=dtype, out=place)
        return torch.linalg.vector_norm(norms)

    return norm


def tensor_norms(tensors: Sequence[Tensor]) -> Tensor:
    r"""L2 norm of each tensor alone, :math:`\|t_i\|`, as one vector on the first device.

    Args:
        tensors: as for :func:`total_norm`, at least one.
    """
    if not is_sharded(tensors):
        return _norms_on_one_device([*tensors])
    return _of_each(tensors, _norms_on_one_device, is_sum=True)


def magnitudes(tensors: Sequence[Tensor]) -> Tensor:
    r"""Largest absolute element of each tensor, as one vector on the first device.

    Where :func:`tensor_norms` squares what is too large or too small to be squared, this is exact.
    NaN counts as infinite.

    Args:
        tensors: as for :func:`total_norm`, at least one.
    """
    return _of_each(tensors, _magnitudes_on_one_device, is_sum=False)


def count_nonfinite(tensors: Sequence[Tensor]) -> int:
    """Number of tensors that hold a NaN or an infinity, equal on all ranks; waits for the host.

    Exact where :func:`total_norm` is not: a norm may overflow though each element is finite.
    """
    return int((~magnitudes(tensors).isfinite()).sum()) if tensors else 0


def divide_(tensors: Sequence[Tensor], divisor: float) -> None:
    """Divide every tensor by ``divisor`` in place; exactly ``t.div_(divisor)`` for each."""
    if tensors and divisor != 1:
        torch._foreach_div_(local(tensors), divisor)


def multiply_(tensors: Sequence[Tensor], factor: float | Tensor) -> None:
    """Multiply every tensor by ``factor`` (a number or a 0-dim tensor) in place."""
    shards = local(tensors)
    if not isinstance(factor, Tensor):
        if len(shards) == 1:
            shards[0].mul_(factor)
        elif {*map(Tensor.get_device, shards)} == {-1}:
            # a number would be rounded to their type first, and made a tensor for each of them
            is_double = not DOUBLE.isdisjoint(map(_dtype, shards))
            dtype = torch.float64 if is_double else torch.float32
            torch._foreach_mul_(shards, torch.full((), factor, dtype=dtype, device="cpu"))
        elif shards:
            torch._foreach_mul_(shards, factor)
        return
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in shards:
        by_device.setdefault(tensor.device, []).append(tensor)
    for device, there in by_device.items():
        torch._foreach_mul_(there, factor.to(device))


def is_on_host(tensor: Tensor) -> bool:
    """May the host look at it without waiting for a device?"""
    return tensor.get_device() == -1


def shard(tensor: Tensor) -> Tensor:
    """What this rank holds of one tensor."""
    return tensor if type(tensor) is Tensor else local([tensor])[0]


def local(tensors: Sequence[T]) -> list[T]:
    """What this rank holds of each tensor: a ``DTensor``'s shard, any other (or None) itself."""
    if not is_sharded(tensors):
        return list(tensors)
    return [getattr(t, "_local_tensor", t) for t in tensors]


def is_apart(*grads: Tensor) -> bool:
    """Does no other tensor hold the memory of any of these?  (Shards are pieces of a message.)"""
    if is_sharded(grads):
        return not any(map(Tensor._is_view, map(shard, grads)))
    return _are_sole(grads)


def _are_sole(grads: Iterable[Tensor]) -> bool:
    holders = map(_num_holders, map(_cdata, map(Tensor.untyped_storage, grads)))
    return max(holders, default=0) <= SOLE


def _is_partial(tensor: Any) -> bool:
    return is_sharded([tensor]) and any(p.is_partial() for p in tensor.placements)


def _norm_of(norms: Sequence[Tensor]) -> Tensor:
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([*norms]))


def _foreach_norm(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Norms of tensors of one dtype and device."""
    dtype = wide(tensors[0].dtype)
    if not is_on_host(tensors[0]) or max(map(Tensor.numel, tensors)) <= CHUNK:
        return list(torch._foreach_norm(list(tensors), 2, dtype=dtype))
    pieces = [t.reshape(-1).split(CHUNK) if t.numel() > CHUNK else (t,) for t in tensors]
    norms = iter(torch._foreach_norm([p for parts in pieces for p in parts], 2, dtype=dtype))
    return [_norm_of([next(norms) for _ in parts]) for parts in pieces]


def _norms_on_one_device(tensors: list[Tensor]) -> Tensor:
    """The norm of each tensor on the device of the first."""
    groups: dict[tuple, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    norms = [
        (indices, torch.stack(_foreach_norm([tensors[i] for i in indices])))
        for indices in groups.values()
    ]
    return _in_order(norms, tensors[0].device)


def _magnitudes_on_one_device(tensors: list[Tensor]) -> Tensor:
    sizes = [t.abs().max() if t.numel() else t.new_zeros(()).abs() for t in tensors]
    dtype = _widest(tensors)
    each = torch.stack([size.to(tensors[0].device, dtype) for size in sizes])
    return each.nan_to_num(nan=math.inf, posinf=math.inf)


def _of_each(
    tensors: Sequence[Tensor], measure: Callable[[list[Tensor]], Tensor], *, is_sum: bool
) -> Tensor:
    """``measure`` of each tensor over the shards of all ranks: a sum of squares, or the largest."""
    found = []
    for (mesh, sharded), shards in by_mesh(tensors).items():
        each = measure(list(shards.values()))
        if sharded:
            each = each.square() if is_sum else each
            how = torch.distributed.ReduceOp.SUM if is_sum else torch.distributed.ReduceOp.MAX
            for dim in sharded:
                torch.distributed.all_reduce(each, how, group=mesh.get_group(dim))
            each = each.sqrt() if is_sum else each
        found.append((list(shards), each))
    return _in_order(found, tensors[0].device)


def _in_order(parts: list[tuple[list[int], Tensor]], device: torch.device) -> Tensor:
    """Values of parts of a list, put back into its order on one device, without a host sync."""
    if len(parts) == 1:
        return parts[0][1].to(device)
    dtype = _widest([part for _, part in parts])
    values = [(indices, part.to(device, dtype).unbind()) for indices, part in parts]
    by_place = {i: v for indices, part in values for i, v in zip(indices, part, strict=True)}
    return torch.stack([by_place[i] for i in range(len(by_place))])


def _widest(tensors: Iterable[Tensor]) -> torch.dtype:
    """Float64 where a tensor has it, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def wide(dtype: torch.dtype) -> torch.dtype:
    """Float32 for 16-bit types, in which sums and averages stop growing; any other itself."""
    return torch.float32 if dtype in HALF else dtype


def by_mesh(tensors: Iterable[Any]) -> dict[tuple[Any, tuple[int, ...]], dict[int, Tensor]]:
    """Local shards by (mesh, dimensions that shard) and place; pending partial sums are reduced.

    Tensors that are no ``DTensor`` come under (None, ()).
    """
    groups: dict[tuple[Any, tuple[int, ...]], dict[int, Tensor]] = {}
    for index, tensor in enumerate(tensors):
        if not is_sharded([tensor]):
            groups.setdefault((None, ()), {})[index] = tensor
            continue
        if _is_partial(tensor):
            from torch.distributed.tensor import Replicate

            whole = [Replicate() if p.is_partial() else p for p in tensor.placements]
            tensor = tensor.redistribute(placements=whole)
        sharded = tuple(i for i, p in enumerate(tensor.placements) if not p.is_replicate())
        groups.setdefault((tensor.device_mesh, sharded), {})[index] = tensor._local_tensor
    return groups
