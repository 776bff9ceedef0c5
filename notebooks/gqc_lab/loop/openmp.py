"""Release the processor threads that a Python thread keeps but does not use.

GNU's OpenMP keeps a pool for every thread that has computed in parallel.  Once all of them have
more threads than there are cores, each small operation pays for waking some up: with the pool of
the kernel's main thread left over, a run in another thread takes three times as long.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

_SOFT = 1  # omp_pause_soft of OpenMP 5.0: keeps the settings of the program


def release_threads() -> None:
    """End the pool of the calling thread, if torch has one; its next operation makes another."""
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
