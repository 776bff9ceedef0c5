r"""Numbers in the param groups of anybody's optimizer, as controls that act around each step.

An edit keeps its ratio to what a schedule writes: with the group's value :math:`b_0` when the value
v was set and b now, the optimizer steps with :math:`v\,b/b_0`, which is exactly v where nobody
writes the group.  The group is changed before ``step`` and restored after it, so a schedule that
multiplies what it finds does not compound the edit.  Where :math:`b_0 = 0` it is v, and
:math:`b_0` is what the first step after the edit finds: the loop may write it at the top of a body.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from gqc_lab.loop.settings import Setting

Optimizers = Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer]
_RANGES = {
    "lr": Setting(meaning="learning rate of the first group", low=0),
    "momentum": Setting(meaning="momentum", low=0, below=1),
    "dampening": Setting(meaning="dampening of momentum", low=0),
    "weight_decay": Setting(meaning="weight decay of the first group", low=0),
    "betas": Setting(meaning="decay of a moment", low=0, below=1),
}
_WRITTEN = ("initial_lr", "swa_lr")  # by schedules, for themselves


def _write(group: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(group[key], torch.Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


class _Place(NamedTuple):
    optimizer: Optimizer
    key: str
    first: int  # group that has it
    at: int | None  # in a tuple such as betas

    def read(self, group: Mapping[str, Any]) -> float:
        value = group[self.key]
        return float(value if self.at is None else value[self.at])

    def write(self, group: dict[str, Any], value: float) -> None:
        old, at = group[self.key], self.at
        _write(group, self.key, value if at is None else (*old[:at], value, *old[at + 1 :]))

    def groups(self) -> list[dict[str, Any]]:
        return [group for group in self.optimizer.param_groups if self.key in group]


class Tunables:
    """Controls of the numbers in param groups.

    Args:
        optimizers: by the prefix of their controls; "" for none.
    Attributes:
        specs: control -> its setting, with the present value of the first group that has it.
        edited: control -> its value and, by group, what the first step found; empty before.
        now: control -> what the last step of this batch was made with, or would be.
        has_stepped: has one of the optimizers, since `begin`?
        on_flush: called after a wrapper's ``flush``.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self._places: dict[str, _Place] = {}
        self.specs: dict[str, Setting] = {}
        self.edited: dict[str, tuple[float, list[float]]] = {}
        self.on_flush: Callable[[], object] = lambda: None
        self._optimizers: list[Optimizer] = []
        self._seen: list[Any] = []  # in the groups, when `values` last read them
        self._values: dict[str, float] = {}
        self._before: list[tuple[dict[str, Any], str, Any]] = []
        self._hooks: list[Any] = []
        self._guarded: list[tuple[Any, str, Any, Any]] = []  # optimizer, name, method, former
        self._stepping: Optimizer | None = None  # whose step the groups were changed for
        for prefix, given in optimizers.items():  # Accelerate's has no hooks, the one in it has
            chain = [o for o in unwrapped(given) if hasattr(o, "_optimizer_step_pre_hooks")]
            self._optimizers.append(chain[0])
            for number, group in enumerate(chain[0].param_groups):
                for key, value in group.items():
                    self._find(prefix, _Place(chain[0], key, number, None), value)
            for name in ("step", "flush", "closes_next"):
                self._guard(chain[0], name)
            for each in chain:  # a wrapper's flush() steps the one in it alone
                post = each.register_step_post_hook(partial(self._end_step, chain[0]))
                # Schedules that hooks step find the groups without the edit.
                each._optimizer_step_post_hooks.move_to_end(post.id, last=False)
                self._hooks += [each.register_step_pre_hook(partial(self._scale, chain[0])), post]
        self.begin()

    def begin(self) -> None:
        """Begin a batch."""
        self.has_stepped, self.now, self._versions_before = False, self.values(), self._versions()

    def has_trained(self) -> bool:
        """Has a step or a backward come since `begin`?"""
        return self.has_stepped or self._versions() != self._versions_before

    def _versions(self) -> list[Any]:
        """Return what a backward changes, of a few of each group: this is asked at each batch."""
        lists = [g["params"] for o in self._optimizers for g in o.param_groups]
        few = 16 // max(len(lists), 1) + 1
        grads = [p.grad for params in lists for p in params[:: len(params) // few + 1]]
        return [None if g is None else (id(g), g._version) for g in grads]

    def _parameters(self) -> list[torch.Tensor]:
        return [p for o in self._optimizers for g in o.param_groups for p in g["params"]]

    @property
    def gradients(self) -> dict[int, torch.Tensor]:
        """What waits in ``.grad``, by number of the parameter, unless a wrapper saves it itself."""
        if any(getattr(o, "holds_running_sum", False) for o in self._optimizers):
            return {}
        return {i: p.grad for i, p in enumerate(self._parameters()) if p.grad is not None}

    @gradients.setter
    def gradients(self, gradients: Mapping[int, torch.Tensor]) -> None:
        params = self._parameters()
        for i, grad in gradients.items():
            params[i].grad = grad.to(params[i].device, copy=True)

    def _find(self, prefix: str, place: _Place, value: Any) -> None:
        key = place.key
        found: list[tuple[str, int | None, Any]] = [(key, None, value)]
        if isinstance(value, tuple):
            found = [(f"{key}[{i}]", i, each) for i, each in enumerate(value)]
        for name, index, number in found:
            if isinstance(number, torch.Tensor) and number.numel() == 1 and key != "params":
                number = number.item()
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not is_number or key in _WRITTEN or prefix + name in self.specs:
                continue
            known = _RANGES.get(key, Setting(meaning=f"{key} of the first group", low=0))
            low = known.low if number >= 0 else float("-inf")
            kind = int if isinstance(number, int) and key not in _RANGES else float
            self.specs[prefix + name] = replace(
                known, default=number, low=low, kind=kind, label=prefix + name
            )
            self._places[prefix + name] = place._replace(at=index)

    def _guard(self, optimizer: Any, name: str) -> None:
        """Put back the groups after a method that raises, and let a question see the edits."""
        if (method := getattr(optimizer, name, None)) is None:
            return

        @wraps(getattr(method, "__func__", method))
        def guarded(_: Any, *args: Any, **given: Any) -> Any:
            if name == "closes_next":
                self._scale(optimizer, optimizer)
            try:
                return method(*args, **given)
            finally:
                self.restore()
                if name == "flush":
                    self.on_flush()

        own, former = MethodType(guarded, optimizer), vars(optimizer).get(name)
        self._guarded.append((optimizer, name, own, former))
        setattr(optimizer, name, own)

    def edit(self, changes: Mapping[str, Any]) -> None:
        """Take over changes of the controls, between two steps; other names are left out."""
        self.edited |= {name: (v, []) for name, v in changes.items() if name in self._places}

    def values(self) -> dict[str, float]:
        """Return what the optimizer would step with now, in the first group that has it."""
        seen = [p.optimizer.param_groups[p.first][p.key] for p in self._places.values()]
        if seen != self._seen or self.edited or torch.Tensor in map(type, seen):
            groups = {n: p.optimizer.param_groups[p.first] for n, p in self._places.items()}
            self._values = {name: self._value(name, 0, group) for name, group in groups.items()}
            self._seen = [] if self.edited else seen  # an edit ends without a trace in them
        return self._values

    def _value(self, name: str, number: int, group: Mapping[str, Any]) -> float:
        now = self._places[name].read(group)
        if name not in self.edited:
            return now
        value, bases = self.edited[name]
        bases = bases or [now]
        base = bases[min(number, len(bases) - 1)]  # of a group that was added since: the last
        if base != bases[0]:
            value = value * base / bases[0] if bases[0] else base
        value = value * (now / base) if base else value
        return round(value) if self.specs[name].kind is int else value

    def _scale(self, optimizer: Optimizer, stepping: Optimizer, *_: Any) -> None:
        if self._before and stepping is not optimizer:
            return  # within the step of the wrapper around it
        self.restore()  # a step that raised has left its values
        self._stepping = stepping
        for name, (value, bases) in self.edited.items():
            place = self._places[name]
            if place.optimizer is optimizer:
                self.edited[name] = value, bases or [place.read(group) for group in place.groups()]
                what = f"{name} (edited to {value:g}; it follows its schedule, so set it again)"
                for number, group in enumerate(place.groups()):
                    old = group[place.key]
                    new = self.specs[name].check(what, self._value(name, number, group))
                    kept = float(old) if isinstance(old, torch.Tensor) else old
                    self._before.append((group, place.key, kept))
                    place.write(group, new)

    def _end_step(self, optimizer: Optimizer, after: Optimizer, *_: Any) -> None:
        self.restore(after)
        if not self._before:  # else within the step of a wrapper
            own = {n: v for n, v in self.values().items() if self._places[n].optimizer is optimizer}
            self.now = {**self.now, **own}

    def restore(self, after: Optimizer | None = None) -> None:
        """Put back what was in the groups before the step (of ``after``, which has stepped)."""
        self.has_stepped |= after is not None
        while self._before and after in (None, self._stepping):
            _write(*self._before.pop())

    def detach(self) -> None:
        """Leave the optimizers alone from now on."""
        self.restore()
        for hook in self._hooks:
            hook.remove()
        while self._guarded:
            optimizer, name, own, former = self._guarded.pop()
            if vars(optimizer).get(name) is own:  # nobody has put something around it since
                setattr(optimizer, name, former) if former else delattr(optimizer, name)


def named(optimizers: Optimizers) -> dict[str, Optimizer]:
    if isinstance(optimizers, Optimizer):
        return {"": optimizers}
    given: Any = optimizers if isinstance(optimizers, Mapping) else dict(enumerate(optimizers))
    by_name = {f"{name}.": each for name, each in given.items()}
    for name, each in by_name.items():
        if not isinstance(each, Optimizer):
            kind = type(each).__name__
            raise TypeError(f"{name[:-1]} is a {kind}: expected torch optimizers or an Experiment")
    return by_name


def unwrapped(optimizer: Any) -> Iterator[Any]:
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "optimizer", None)
