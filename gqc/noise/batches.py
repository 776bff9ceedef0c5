"""Microbatches of a loader, read without a trace."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import torch
from torch import nn


def length(batch: Any, scalar: int | None = 1) -> int | None:
    """Length of the first tensor or array in a batch; a number among them has none."""
    if hasattr(batch, "shape"):
        return len(batch) if len(batch.shape) else scalar
    parts = batch.values() if hasattr(batch, "values") else batch
    known = parts if isinstance(parts, Iterable) and not isinstance(parts, str) else ()
    return next((size for part in known if (size := length(part, None)) is not None), None)


def alike(loader: Iterable[Any], most: int) -> Iterator[Any]:
    """At most so many batches, those of the size of the first."""
    batches = iter(loader)
    for first in batches:
        rest = (batch for batch in batches if length(batch) == length(first))
        yield from islice(chain([first], rest), most)
        return


def generators_of(loader: Any) -> dict[int, torch.Generator]:
    """Return the generators of a ``DataLoader``, its samplers and theirs, by place."""
    batches = getattr(loader, "batch_sampler", None)
    places = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = {i: getattr(place, "generator", None) for i, place in enumerate(places)}
    return {i: g for i, g in found.items() if isinstance(g, torch.Generator)}


@contextmanager
def unchanged(model: nn.Module, loader: Any) -> Iterator[None]:
    """Put back buffers, modes and generators; the rest is not touched."""
    modes = [(module, module.training) for module in model.modules()]
    named = [(m, *pair) for m, _ in modes for pair in m.named_buffers(recurse=False)]
    values = [buffer.detach().clone() for *_, buffer in named]
    numpy: Any = sys.modules.get("numpy")
    states: list[tuple[Callable[[Any], Any], Any]] = [(random.setstate, random.getstate())]
    states += [(g.set_state, g.get_state()) for g in generators_of(loader).values()]
    states += [(numpy.random.set_state, numpy.random.get_state())] if numpy else []
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng([*cuda]):
            yield
    finally:
        for (module, name, buffer), value in zip(named, values, strict=True):
            buffer.detach().copy_(value)
            setattr(module, name, buffer)  # it may have been replaced
        for module, mode in modes:
            module.training = mode
        for restore, state in states:
            restore(state)
