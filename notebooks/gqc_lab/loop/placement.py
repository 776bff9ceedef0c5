"""Where an experiment computes: device, number format, and random streams."""

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gqc_lab.errors import check_name
from gqc_lab.loop.settings import DTYPES


def find_device(name: str) -> torch.device:
    """Return the device of that name; ``"auto"`` is cuda, else mps, else cpu.

    Raises: ValueError: no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={name!r}: not usable here ({reason}); "
            "expected 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'"
        ) from None
    return device


def find_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of that name."""
    check_name("dtype", name, DTYPES)
    return getattr(torch, name)


def make_generator(seed: int, stream: str) -> torch.Generator:
    """Return a random generator for ``(seed, stream)``, on the CPU: it is the same everywhere."""
    digest = hashlib.sha256(f"{stream}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def random_state(streams: Mapping[str, torch.Generator]) -> dict[str, Any]:
    """Return the state of the global generators of torch, numpy and python, and of ``streams``."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    on_cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "streams": {name: g.get_state() for name, g in streams.items()},
        "torch": torch.get_rng_state(),
        "cuda": on_cards,
        "numpy": [kind, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any], streams: Mapping[str, torch.Generator]) -> None:
    """Take back `random_state`."""
    for name in streams.keys() & state["streams"].keys():
        streams[name].set_state(state["streams"][name])
    torch.set_rng_state(state["torch"])
    for card, own in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(own, card)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
