"""Release the processor threads that a Python thread keeps but does not use.

GNU's OpenMP keeps a pool for every thread that has computed in parallel.  Once all pools together
have more threads than there are cores, their threads no longer wait actively, and each of the many
small operations of a small model pays for waking them up: if the pool of the kernel's main thread
is left over, a run in another thread takes three times as long.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

_SOFT = 1  # omp_pause_soft of OpenMP 5.0: keeps the settings of the program


def release_threads(*_: object) -> None:
    """End the pool of the calling thread; its next parallel operation makes another.

    Does nothing if torch computes without GNU's OpenMP.
    """
    if pause := _find_pause():
        pause(_SOFT)


@functools.cache
def _find_pause() -> Callable[[int], int] | None:
    """Return ``omp_pause_resource_all`` of the library that torch has loaded, if any."""
    for path in Path(torch.__file__).parent.glob("lib/libgomp*.so*"):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "omp_pause_resource_all"):
            return library.omp_pause_resource_all
    return None
