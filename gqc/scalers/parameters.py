"""The parameters that a scaler acts on, from any of the forms that torch hands them out in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gqc.gradients import settle


class ParameterList:
    """Parameters with their names and groups, each once.

    Args:
        parameters: tensors, (name, tensor) pairs, or param-group dicts with these in ``"params"``.
    Attributes:
        tensors: the parameters.
        names: of the parameters, or empty if they came without.
        groups: number of the param group of each parameter.
    Raises:
        ValueError: there is none, or only some have a name.
        TypeError: something else is in there.
    """

    def __init__(self, parameters: Iterable[Any]) -> None:
        self.tensors: list[Tensor] = []
        self.names: list[str] = []
        self.groups: list[int] = []
        self._has_groups = False
        self._on_device: dict[Any, Tensor] = {}
        seen = set()
        for group, name, tensor in self._entries(parameters):
            if id(tensor) not in seen:  # tied parameters have one gradient
                seen.add(id(tensor))
                self.tensors.append(tensor)
                self.groups.append(group)
                self.names += [] if name is None else [name]
        if not self.tensors:
            raise ValueError("no parameters to scale: an iterator that was used up?")
        if self.names and len(self.names) != len(self.tensors):
            raise ValueError("some parameters have a name and some have not: name all or none")

    def check(self, granularity: str) -> None:
        """Raise ValueError where ``granularity`` needs groups and there are none."""
        if granularity == "group" and not self._has_groups:
            raise ValueError("granularity='group': give optimizer.param_groups as the parameters")

    def gradients(self) -> list[Tensor | None]:
        """The gradient of each parameter, whole where ranks have parts of its sum.

        Raises: TypeError: a sparse gradient.
        """
        return settle(self.tensors, self.names)

    def shapes(self) -> list[list[int]]:
        """Shape of each parameter (of the whole one if it is sharded)."""
        return [list(p.shape) for p in self.tensors]

    def numels(self, device: torch.device) -> Tensor:
        """Number of elements of each tensor [T]."""
        return self._copied("numels", [p.numel() for p in self.tensors], device)

    def members(self, group: int, device: torch.device) -> Tensor:
        """Which tensors belong to ``group`` [T]."""
        return self._copied(group, [g == group for g in self.groups], device)

    def _copied(self, key: Any, values: list[Any], device: torch.device) -> Tensor:
        """``values`` on ``device``, copied there once: the host waits for each copy."""
        if (key, device) not in self._on_device:
            self._on_device[key, device] = torch.tensor(values, device=device)
        return self._on_device[key, device]

    def _entries(self, parameters: Iterable[Any]) -> Iterator[tuple[int, str | None, Tensor]]:
        for number, entry in enumerate(parameters):
            if isinstance(entry, Mapping):
                self._has_groups = True
                inside = entry["params"]
                items = [inside] if isinstance(inside, Tensor) else list(inside)
                if names := entry.get("param_names"):  # of an optimizer over named_parameters()
                    items = list(zip(names, items, strict=True))
                for item in items:
                    yield number, *_named(item)
            else:
                yield 0, *_named(entry)


def _named(entry: Any) -> tuple[str | None, Tensor]:
    if isinstance(entry, Tensor):
        return None, entry
    if isinstance(entry, Sequence) and len(entry) == 2 and isinstance(entry[1], Tensor):
        return str(entry[0]), entry[1]
    raise TypeError(
        f"parameters hold a {type(entry).__name__}: expected tensors, (name, tensor) pairs or "
        "param groups"
    )
