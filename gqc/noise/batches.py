"""Microbatches of a loader, read without a trace."""

import random
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import nn


def length(batch: Any) -> int | None:
    """How many examples a batch has: the length that all its tensors and arrays begin with.

    Of an object that is no collection it looks at the attributes.

    Raises: ValueError: they begin with different ones.
    """
    found = {*_lengths(batch)}
    if len(found) > 1:
        raise ValueError(
            f"tensors of lengths {sorted(found)} in a batch, which do not say how many examples it "
            "has: pass examples=, a function of the batch that counts them"
        )
    return found.pop() if found else None


def _lengths(batch: Any, is_attribute: bool = False) -> Iterator[int]:
    parts: Iterable[Any] = ()
    if hasattr(batch, "shape"):
        yield from batch.shape[:1]
    elif is_dataclass(batch) and not isinstance(batch, type):
        parts = [getattr(batch, field.name) for field in fields(batch)]
    elif isinstance(batch, Collection) and not isinstance(batch, str):
        parts = batch.values() if hasattr(batch, "values") else batch
    elif not is_attribute:  # whose own may be anything, as those of a data set
        parts, is_attribute = getattr(batch, "__dict__", {}).values(), True
    for part in parts:
        yield from _lengths(part, is_attribute)


def alike(loader: Iterable[Any], most: int, count: Callable[[Any], Any]) -> Iterator[Any]:
    """At most so many batches, those of the size of the first."""
    batches = iter(loader)
    for first in batches:
        rest = (batch for batch in batches if count(batch) == count(first))
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
