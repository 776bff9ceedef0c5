"""``torch.compile`` of the scalers' passes over large gradients, for those who ask for it.

Torch's operations read a gradient two or three times for what one loop can do.  The functions that
are compiled stand beside the ones that they replace, and give the same numbers uncompiled, slowly.
The compiler is loaded with the first of them, not before.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

TOGETHER = 8  # tensors of one shape in a call at most
LEAST = 2.0**-20  # a smaller factor may take gradients to where float32 has fewer bits


@functools.cache
def compiled(function: Callable[..., Any], *key: Hashable) -> Callable[..., Any]:
    """``function``, compiled for the shapes that ``key`` stands for; one of a kind in a process.

    Each has a code object of its own: torch counts the graphs of a code object, to stop at eight,
    and looks through them at every call.  Numbers that change from call to call have to come as
    tensors; anything else would be compiled anew.

    Args:
        function: a plain function of tensors, lists of them, and constants.
        key: of everything that makes another graph.
    Raises: RuntimeError: torch cannot compile here; in the call, where that is where it fails.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{len(_names)}")
    _names.append(code.co_name)
    own = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__)
    try:
        fast = torch.compile(own, dynamic=False, fullgraph=True)
    except RuntimeError as error:  # a Python or a system that torch.compile does not know
        raise RuntimeError(_MESSAGE) from error

    def call(*args: Any) -> Any:
        try:
            return fast(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise RuntimeError(_MESSAGE) from error

    return call


def check_available() -> None:
    """Raise RuntimeError where ``torch.compile`` is not to be had at all."""
    compiled(_nothing)


def computed(value: Tensor) -> Tensor:
    """``value``, which a compiled function computes once and has at hand for all who use it.

    Inductor would put the formula into each loop that uses it.  Then a sum reads what another loop
    is to overwrite, and the two cannot be one loop.  A value that is viewed as strides is computed
    as a tensor, its users join that loop, and where none is left outside it is never stored.
    """
    return value.as_strided(value.shape, value.stride())


def even_parts(items: list[Any], most: int = TOGETHER) -> list[list[Any]]:
    """Cut a list into runs of at most ``most``, of one or two lengths."""
    number = -(-len(items) // most)
    ends = [len(items) * i // number for i in range(number + 1)]
    return [items[a:b] for a, b in itertools.pairwise(ends)]


def whole_or_single(members: list[Any], present: list[Any]) -> list[list[Any]]:
    """Which of ``members``' tensors go together, where only those in ``present`` have a gradient.

    All, or each by itself: a pattern of missing gradients may never come again, and would be
    another graph.
    """
    return [present] if len(present) == len(members) else [[one] for one in present]


def _nothing() -> None:
    pass


_names: list[str] = []
_MESSAGE = (
    "compile=True: torch.compile failed, see the error above; on a CPU it needs a C++ compiler. "
    "compile=False works without one"
)
