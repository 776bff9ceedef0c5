"""The parameters that a scaler acts on, from any of the forms that torch hands them out in."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from gqc.gradients import settle

AGAIN = (
    "scale_gradients() again before step(): call it once per optimizer step, after the last "
    "backward(), and then the scaler's step(): without it the warmup never ends"
)
EARLY = "scale_gradients() before backward() scales nothing: call it between that and the step"
MARKS = itertools.count(1)  # one for each scaler


class ParameterList:
    """Parameters with their names and groups, each once.

    Args:
        parameters: tensors, (name, tensor) pairs, or param-group dicts with these in ``"params"``.
    Attributes:
        names: of the parameters, or empty if they came without.
        groups: number of the param group of each parameter.
    Raises:
        ValueError: there is none, only some have a name, or two have the same.
        TypeError: something else is in there.
    """

    def __init__(self, parameters: Iterable[Any]) -> None:
        if isinstance(parameters, Tensor):
            raise TypeError("parameters is one tensor, whose rows would count as parameters: [it]")
        self.tensors: list[Tensor] = []
        self.names: list[str] = []
        self.groups: list[int] = []
        self.is_marked = False  # were gradients scaled since the scaler's last step?
        self.was_early = False  # were there none when they were to be scaled?
        self.mark_of = f"scaled_by_{next(MARKS)}"  # attribute of a gradient that this one scaled
        self._has_groups = False
        seen = set()
        for group, name, tensor in self._entries(parameters):
            if id(tensor) not in seen:  # tied parameters have one gradient
                seen.add(id(tensor))
                self.tensors.append(tensor)
                self.groups.append(group)
                self.names += [] if name is None else [name]
        self._complex = [tensor for tensor in self.tensors if tensor.is_complex()]
        if not self.tensors:
            raise ValueError("no parameters to scale: an iterator that was used up?")
        if self.names and len(self.names) != len(self.tensors):
            raise ValueError("some parameters have a name and some have not: name all or none")
        if len(set(self.names)) < len(self.names):
            raise ValueError("two parameters have one name: use named_parameters(prefix=...)")

    def check(self, granularity: str) -> None:
        """Raise ValueError where ``granularity`` needs groups and there are none."""
        if granularity == "group" and not self._has_groups:
            raise ValueError("granularity='group': give optimizer.param_groups as the parameters")

    def gradients(self) -> list[Tensor | None]:
        """The gradient of each parameter, whole where ranks have parts of its sum.

        Raises: TypeError: a sparse gradient.
        """
        for param in self._complex:
            if param.grad is not None:  # autograd may leave it to be conjugated
                param.grad = param.grad.resolve_conj()
        return settle(self.tensors, self.names)

    def mark(self, grads: Sequence[Tensor | None], is_first: bool) -> None:
        """Note on the first gradient that it is being scaled; zero_grad() removes that with it.

        Raises: RuntimeError: it was scaled before in this step.
        """
        first = next((grad for grad in grads if grad is not None), None)
        are_marked = (self.mark_of in vars(grad) for grad in grads if grad is not None)
        if self.is_marked and any(are_marked):
            raise RuntimeError(AGAIN)
        if self.is_marked and is_first:
            warnings.warn(AGAIN, stacklevel=5)
        self.was_early = first is None
        if first is not None:
            self.is_marked = vars(first)[self.mark_of] = True

    def check_there(self, estimator: str) -> None:
        """Raise RuntimeError where gradients came after they were to be scaled, or are gone."""
        is_gone = all(p.grad is None for p in self.tensors)
        if self.was_early and not is_gone:
            raise RuntimeError(EARLY)
        if self.is_marked and is_gone:
            raise RuntimeError(
                f"estimator={estimator!r} reads gradients in step(), and zero_grad() has removed "
                "them: call the scaler's step() between the optimizer's and zero_grad()"
            )

    def shapes(self) -> list[list[int]]:
        """Shape of each parameter (of the whole one if it is sharded)."""
        return [list(p.shape) for p in self.tensors]

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
        f"parameters hold a {type(entry).__name__}: expected tensors, (name, tensor) pairs, groups"
    )


def which_train(params: Sequence[Tensor], numels: list[int], found: list[int]) -> list[bool]:
    """Which have a gradient or may get one: what is frozen does not count.

    Raises: ValueError: a gradient of other than ``numels`` elements (-1 for none).
    """
    for index, (here, numel) in enumerate(zip(found, numels, strict=True)):
        if here not in (-1, numel):
            raise ValueError(
                f"gradient {index} has {here} elements, and {numel} when its statistics began: "
                "replace the parameter and call update_parameters(), or reset_statistics()"
            )
    return [here >= 0 or p.requires_grad for here, p in zip(found, params, strict=True)]
