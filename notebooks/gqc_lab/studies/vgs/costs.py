"""Costs of the VGS estimators: bytes that a scaler holds, and time next to a step of AdamW.

Bytes are counted, not computed from a formula: of every tensor that can be reached from the scaler,
each storage once, parameters left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from timeit import timeit
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gqc.scalers import VarianceGradientScaler
from gqc_lab.loop.placement import find_device, find_dtype, make_generator
from gqc_lab.loop.settings import read_scales

#: scale -> of the estimators' errors and costs (notebook 05)
SCALES = read_scales(Path(__file__).with_name("costs.csv"))


def held_bytes(owner: object, others: Iterable[Tensor] = ()) -> int:
    """Return the bytes of the tensors that ``owner`` keeps alive, without those of ``others``.

    Looks into attributes, dicts, lists, tuples and sets; each storage counts once.
    """
    known = {storage.data_ptr() for t in others for storage in _storages(t)}
    sizes: dict[int, int] = {}
    seen: set[int] = set()
    waiting: list[Any] = [owner]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, type):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            sizes |= {s.data_ptr(): s.nbytes() for s in _storages(item)}
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple | set):
            waiting += item
        elif type(item).__module__.startswith("gqc.") and hasattr(item, "__dict__"):
            waiting += vars(item).values()
    return sum(size for place, size in sizes.items() if place not in known)


def state_bytes(state: object) -> int:
    """Return the bytes of the tensors in a ``state_dict``."""
    return sum(each.nbytes for each in tree_leaves(state) if isinstance(each, Tensor))


def measure_costs(
    estimators: Mapping[str, Mapping[str, Any]],
    shapes: Sequence[Sequence[int]],
    rounds: int = 20,
    device: str = "cpu",
    dtype: str = "float32",
) -> pd.DataFrame:
    """Return memory and time of each estimator for parameters of these shapes.

    A round times AdamW and every estimator in turn, so that what else the machine does falls on all
    of them; the medians are compared.

    Args:
        estimators: label -> options of :class:`~gqc.scalers.VarianceGradientScaler`.
        rounds: that count, after one that does not.
    Returns: a row each: ``estimator``, ``parameters``, ``tensors``, ``checkpoint_bytes``,
        ``held_bytes`` (constant working memory included), ``seconds`` (of ``scale_gradients`` and
        ``step``), ``adamw_seconds``.
    """
    place: dict[str, Any] = {"device": find_device(device), "dtype": find_dtype(dtype)}
    generator = make_generator(0, "costs")
    parameters = [torch.zeros(*shape, **place, requires_grad=True) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(**place)
    adamw = torch.optim.AdamW(parameters, lr=1e-9, foreach=True)
    scalers = {
        label: VarianceGradientScaler(parameters, **{"warmup_steps": 0, **options})
        for label, options in estimators.items()
    }
    times: dict[str, list[float]] = {label: [] for label in ("AdamW", *scalers)}
    for _ in range(rounds + 1):
        times["AdamW"].append(timeit(adamw.step, number=1))
        for label, scaler in scalers.items():
            seconds = timeit(scaler.scale_gradients, number=1) + timeit(scaler.step, number=1)
            times[label].append(seconds)
    own = [*parameters, *(p.grad for p in parameters if p.grad is not None)]
    return pd.DataFrame(
        {
            "estimator": label,
            "parameters": sum(p.numel() for p in parameters),
            "tensors": len(parameters),
            "checkpoint_bytes": state_bytes(scaler.state_dict()["statistics"]),
            "held_bytes": held_bytes(scaler, own),
            "seconds": median(times[label][1:]),
            "adamw_seconds": median(times["AdamW"][1:]),
        }
        for label, scaler in scalers.items()
    )


def _storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    grad = tensor.grad if tensor.is_leaf else None
    return [t.untyped_storage() for t in (tensor, grad) if t is not None]
