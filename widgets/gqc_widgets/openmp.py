"""Give back the processor threads that a thread of ours keeps but does not use.

GNU's OpenMP keeps a pool for every thread that has computed in parallel.  Once all pools together
have more threads than there are cores, none of them waits awake any more, and each of the many
small operations of a small model pays for waking them up: with the pool of the kernel's main thread
left over, a run that trains in another thread takes three times as long.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

_SOFT = 1  # omp_pause_soft of OpenMP 5.0: what the program has set stays


def release_threads(*_: object) -> None:
    """End the calling thread's pool; its next parallel operation makes another.

    Does nothing where torch computes without GNU's OpenMP.
    """
    pause = _find_pause()
    if pause is not None:
        pause(_SOFT)


@functools.cache
def _find_pause() -> Callable[[int], int] | None:
    """``omp_pause_resource_all`` of the library that torch has loaded."""
    for path in Path(torch.__file__).parent.glob("lib/libgomp*.so*"):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "omp_pause_resource_all"):
            function: Callable[[int], int] = library.omp_pause_resource_all
            return function
    return None
