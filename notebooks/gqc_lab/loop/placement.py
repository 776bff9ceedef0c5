"""Where an experiment computes: device, number format, and its own random streams."""

import hashlib

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
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def make_generator(seed: int, stream: str) -> torch.Generator:
    """Return a random generator on the CPU, independent of every other ``(seed, stream)``.

    On the CPU whatever the device, so that a seed means the same weights and data everywhere.
    """
    digest = hashlib.sha256(f"{stream}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
