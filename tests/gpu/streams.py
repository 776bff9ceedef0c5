"""Gradient streams on a device, the same numbers everywhere, and how often the host waits there."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import problems
import pytest
import torch
from torch import Tensor

from gqc.scalers import moments

no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


def parameters(device: torch.device) -> list[Tensor]:
    """``problems.parameters`` on ``device``."""
    return [p.detach().to(device).requires_grad_() for p in problems.parameters()]


def backward(params: list[Tensor], grads: list[Tensor]) -> None:
    """Run a backward whose gradients are ``grads``, plain tensors on any device."""
    weights = [grad.to(p.device, p.dtype) for p, grad in zip(params, grads, strict=True)]
    loss = sum((p * weight).sum() for p, weight in zip(params, weights, strict=True))
    loss.backward()  # type: ignore[union-attr]


@contextlib.contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """List the host's waits for the device inside the block.

    On CUDA those that torch itself reports (``torch.cuda.set_sync_debug_mode``: reads of a number,
    copies from and to pageable memory, ``nonzero`` and the like); on the CPU the calls that would
    wait if the tensors were on a card.
    """
    seen: list[str] = []
    if device.type == "cuda":
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield seen
            finally:
                torch.cuda.set_sync_debug_mode("default")
        messages = [str(warning.message) for warning in caught]
        seen.extend(text for text in messages if "called a synchronizing" in text)
        return
    on_host, moments.is_on_host = moments.is_on_host, lambda _: False
    originals = [(owner, name, getattr(owner, name)) for owner, names in READS for name in names]
    for owner, name, original in originals:

        def counted(*args: object, name=name, original=original, **kwargs: object):
            seen.append(name)
            return original(*args, **kwargs)

        setattr(owner, name, counted)
    try:
        yield seen
    finally:
        moments.is_on_host = on_host
        for owner, name, original in originals:
            setattr(owner, name, original)


READS = (  # a number that comes to the host, and numbers that are copied from it
    (Tensor, ("item", "tolist", "__float__", "__bool__", "__int__", "cpu")),
    (torch, ("tensor", "as_tensor")),
)
