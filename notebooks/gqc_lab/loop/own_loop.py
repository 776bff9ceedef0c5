"""Anybody's training loop as an experiment: its body trains, `Live` begins and ends each batch.

What an `Experiment` knows of itself is found here: controls in the optimizer's param groups and in
a gqc wrapper, records from ``log`` and from the wrapper, and the whole state, with the global
random generators and the place in the loader, where the loop gives what has a ``state_dict``.
"""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.noise.batches import generators_of
from gqc.scalers import VarianceGradientScaler
from gqc.schedules import THRESHOLD
from gqc.wrappers import OptimizerWrapper
from gqc_lab.loop.controls import NORM_NAMES, Controls, NormSchedule, norm_controls, norm_schedule
from gqc_lab.loop.experiment import Experiment, append
from gqc_lab.loop.placement import random_state, set_random_state
from gqc_lab.loop.scaler_controls import SCALER, apply_scaler, scaler_controls, scaler_values
from gqc_lab.loop.settings import Setting
from gqc_lab.loop.tunables import Optimizers, Tunables, named, unwrapped

#: measured of each wrapper; the last where its window was closed
OF_WINDOW = ("stepped", "num_draws", "grad_norm", "noise_scale")


@dataclass(frozen=True)
class Parts:
    """What a checkpoint must have in common with the loop that loads it."""

    names: tuple[str, ...]  # of what is saved
    numbers: dict[str, Any]  # of the param groups at the beginning, and how many weights


class Loop(Experiment):
    """The batches of a loop that somebody else wrote.

    Args:
        optimizers: one or several; several have their number or name before their controls.
        total: microbatches of the whole run; None: not known.
        state: what a checkpoint holds beside the optimizers, by name: whatever has ``state_dict``
            and ``load_state_dict``, and torch generators.  None: there are no checkpoints.
        label: a short name for legends and files.
    Attributes:
        epoch: times that a loader was gone through: not where ``break`` ended it, but ``islice``.
        position: batches of the present loader that have begun.
        own_names: columns that `log` may not have, since they are measured.
    Raises: TypeError: what is no optimizer, or has no state.
    """

    unit = "microbatch"

    def __init__(
        self,
        optimizers: Optimizers,
        total: int | None = None,
        state: Mapping[str, Any] | None = None,
        label: str = "loop",
    ) -> None:
        by_name = named(optimizers)
        self.tunables = Tunables(by_name)
        pairs = [(name, o) for name, each in by_name.items() for o in unwrapped(each)]
        scalers = [getattr(o, "scaler", None) for _, o in pairs] + list((state or {}).values())
        self.scaler = next((s for s in scalers if isinstance(s, VarianceGradientScaler)), None)
        found = [(name, o) for name, o in pairs if isinstance(o, OptimizerWrapper)]
        self.wrapper = found[0][1] if found else None
        self.wrappers = dict(found[::-1])  # the outer one of several within one another
        if len(self.wrappers) == 1:
            self.wrappers = {"": found[0][1]}
        self.tunables.on_flush = self._note_flush
        parts, generators = _sort_state(by_name, state)
        groups = [group for each in by_name.values() for group in each.param_groups]
        numbers = {name: spec.default for name, spec in self.tunables.specs.items()}
        numbers["weights"] = sum(p.numel() for group in groups for p in group["params"])
        self._applies: dict[str, Callable[[Any], object]] = {}
        self._is_drawn = False  # does the norm schedule of the controls decide the threshold?
        super().__init__(
            Parts(tuple(sorted([*parts, *generators])), numbers),
            label=label,
            total=total if total is not None else math.inf,  # type: ignore[arg-type]
            parts=parts,
            generators=generators,
            controls=self._make_controls(total),
        )
        self.epoch = self.position = 0
        self._loader: Any = None
        self._start: dict[str, Any] | None = None  # of the random generators, in this epoch
        self._resumed: dict[str, Any] | None = None
        self._logged: dict[str, Any] = {}
        self._changes: dict[str, Any] = {}  # of this batch, and of one that was left untouched
        wrapped = [name + key for name in self.wrappers for key in OF_WINDOW]
        scaled = ("stepped", "factor") if self.scaler else ()
        self.own_names = {"microbatch", "seconds", "changes", *wrapped, *scaled}
        self._moving = {THRESHOLD} & set(self.tunables.specs)  # tunables that are recorded
        self._values = self.tunables.values()

    def _make_controls(self, total: int | None) -> Controls:
        specs = {} if self.scaler is None else scaler_controls(self.scaler)
        check: Callable[[Mapping[str, Any]], object] | None = None
        if THRESHOLD in self.tunables.specs and total is not None:
            now = max(self.tunables.specs[THRESHOLD].default, 0.0)
            specs |= norm_controls(NormSchedule(now, now, norm_curve="constant"), total)
            check = norm_schedule
        free = {n: each for n, each in self.tunables.specs.items() if n not in specs}
        return Controls({**free, **specs}, check)

    def control(
        self, name: str, value: Any, apply: Callable[[Any], object] | None = None, **limits: Any
    ) -> None:
        """Add a control; ``apply`` is called with each new value, between two batches.

        Args:
            limits: of `Setting`, such as ``low=0, high=1`` or ``choices=("a", "b")``.
        """
        value = value.item() if hasattr(value, "item") else value  # of numpy or torch
        self.controls.add(name, Setting(value, **{"kind": type(value), "label": name, **limits}))
        if apply is not None:
            self._applies[name] = apply

    @property
    def is_settled(self) -> bool:
        """Whether the last batch stepped, or nothing waits: there `enumerate` may begin again."""
        return self.is_whole and (self.tunables.has_stepped or not self.tunables.gradients)

    def items(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Return an iterator over ``loader``, at the place of the checkpoint that was loaded.

        The generators of a ``DataLoader`` and of its samplers are saved; where something else is
        around it (``tqdm``, ``zip``) the loop's ``state`` has to give them.

        Raises: ValueError: it has workers and the loop gives its state, or too few batches.
        """
        if self.parts and (workers := getattr(loader, "num_workers", 0)):
            raise ValueError(
                f"num_workers={workers}: a loop that gives its state is resumed bit "
                "for bit, which workers that read ahead prevent; use num_workers=0, or state=None"
            )
        self._loader, place, self._resumed = loader, self._resumed, None
        if place is not None:
            set_random_state(place["start"] or place["now"], self._streams())
        if place is None or place["start"] is None:  # saved between two epochs
            self.position = 0
            self._start = random_state(self._streams()) if self.parts else None
            return self._through(iter(loader))
        self._start, items = place["start"], iter(loader)
        if (found := sum(1 for _ in islice(items, self.position))) < self.position:
            raise ValueError(
                f"{found} batches in the loader: the checkpoint has done {self.position}"
            )
        set_random_state(place["now"], self._streams())
        return self._through(items)

    def _through(self, items: Iterator[Any]) -> Iterator[Any]:
        yield from items
        self._end_epoch()

    def _end_epoch(self) -> None:
        self.epoch, self.position, self._start = self.epoch + 1, 0, None

    def follow(self) -> None:
        """Show in the controls what the loop or its schedule wrote itself."""
        own = {} if self.scaler is None else scaler_values(self.scaler)
        self.controls.follow({**self.tunables.values(), **own})

    def begin(self) -> None:
        """Begin the next batch: apply what was set."""
        if self.controls.wished:
            self.follow()  # a wish may be what was shown, and is no more
        self._changes |= (changes := self.controls.advance(self.microbatch + 1))
        if changes:
            self._apply(changes)
        if self._is_drawn:
            value = norm_schedule(self.controls.applied).threshold(self.microbatch, self.total)
            self.tunables.edited[THRESHOLD] = value, [0.0]
        self.tunables.begin()
        self._windows = {name: o.last_window for name, o in self.wrappers.items()}
        self._factor = self.scaler.get_scaling_factor() if self.scaler is not None else None
        self._began, self._is_inside = time.perf_counter(), True

    def _apply(self, changes: Mapping[str, Any]) -> None:
        self._is_drawn = THRESHOLD not in changes and (
            self._is_drawn or not set(changes).isdisjoint(NORM_NAMES)
        )
        self.tunables.edit(changes)
        if self.scaler is not None and not set(changes).isdisjoint(SCALER):
            apply_scaler(self.scaler, {**scaler_values(self.scaler), **changes})
        for name in changes:
            if name in self._applies:
                self._applies[name](changes[name])

    def end(self, is_whole: bool = True) -> None:
        """End the batch: keep its record, unless it was left before a gradient, step or `log`."""
        self._is_inside &= is_whole or bool(self._logged) or self.tunables.has_trained()
        if not self._is_inside:
            return
        self.seconds += time.perf_counter() - self._began
        number = self.microbatch + 1
        record = {"microbatch": number, "seconds": self.seconds, **self._measure(), **self._logged}
        if self._changes:
            record["changes"] = json.dumps(self._changes)
        self._logged, self._changes = {}, {}
        self._ended.append(record)
        self.microbatch = self.done = number
        self.position += 1
        self._is_inside = False
        if self.done >= self.total and self.position == length_hint(self._loader):
            self._end_epoch()  # nobody asks the loader for more

    @property
    def _columns(self) -> dict[str, list[Any]]:
        # Taken in when somebody looks: after training, touching a column misses the cache.
        with self._lock:
            while self._ended:
                record = self._ended.popleft()
                values = {n: v.item() if isinstance(v, Tensor) else v for n, v in record.items()}
                append(self._taken, values)
            return self._taken

    @_columns.setter
    def _columns(self, columns: dict[str, list[Any]]) -> None:
        self._ended, self._taken = deque[dict[str, Any]](), columns

    def _measure(self) -> dict[str, Any]:
        values = self.tunables.now
        if values != self._values:
            for name in {n for n, v in values.items() if v != self._values[n]} - self._moving:
                self._moving.add(name)  # it was constant so far; if logged, the loop's own
                self._columns.setdefault(name, [self._values[name]] * self.microbatch)
            self._values = values
        found = {name: values[name] for name in self._moving} | self._measure_windows()
        if self.scaler is None:
            return found
        stepped = self.tunables.has_stepped
        return {"stepped": stepped, "factor": self._factor, **found, **self.scaler.metrics()}

    def _measure_windows(self) -> dict[str, Any]:
        """Return what became of the wrappers' windows since the batch began."""
        found: dict[str, Any] = {}
        for name, wrapper in self.wrappers.items():
            last = wrapper.last_window
            stepped = last is not self._windows[name]
            window: Any = last if stepped else wrapper
            values = [stepped, window.num_draws, window.grad_norm]
            if stepped:
                values.append(wrapper.statistics().get("noise_scale"))
            found |= {name + key: value for key, value in zip(OF_WINDOW, values, strict=False)}
        return found

    def _note_flush(self) -> None:
        """Record a window that was closed between two batches with its last draw."""
        if not self._is_inside and self.microbatch:
            self._amend(self._measure_windows())

    def statistics(self) -> dict[str, Any]:
        """Return those of the wrappers."""
        found = [(name, o.statistics()) for name, o in self.wrappers.items()]
        return {name + key: value for name, own in found for key, value in own.items()}

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Keep numbers of the batch in progress, or of the last one; tensors are read later.

        Raises: TypeError: no number, text or tensor of one element.  ValueError: in `own_names`.
        """
        if taken := self.own_names & metrics.keys():
            raise ValueError(f"log({', '.join(sorted(taken))}): recorded anyway; use other names")
        kept = {name: _kept(name, value) for name, value in metrics.items()}
        if self._is_inside or not self.microbatch:
            self._logged |= kept
        else:
            self._amend(kept)

    def _amend(self, values: Mapping[str, Any]) -> None:
        """Add to the last record."""
        with self._lock:
            for name, value in values.items():
                column = self._columns.setdefault(name, [None] * self.microbatch)
                column[-1] = value.item() if isinstance(value, Tensor) else value

    def state_dict(self, start: int = 0) -> dict[str, Any]:
        self.follow()
        place: dict[str, Any] = {"epoch": self.epoch, "position": self.position}
        place |= {"start": self._start, "now": random_state(self._streams())}
        place |= {"is_drawn": self._is_drawn, "gradients": self.tunables.gradients}
        place["edited"] = dict(self.tunables.edited)
        return {**super().state_dict(start), "loop": place}

    def _restore(self, state: Mapping[str, Any]) -> None:
        place = state["loop"]
        super()._restore(state)
        self.epoch, self.position = place["epoch"], place["position"]
        self._resumed = dict(place)
        self.tunables.gradients = place.get("gradients", {})
        self._windows = {name: o.last_window for name, o in self.wrappers.items()}
        self._is_drawn, self.tunables.edited = place["is_drawn"], dict(place["edited"])
        self._values, self._logged, self._changes = self.tunables.values(), {}, {}
        self._moving = {n for n in self._values if n in self._columns or n == THRESHOLD}
        for name, apply in self._applies.items():
            apply(self.controls.applied[name])

    def _streams(self) -> dict[str, torch.Generator]:
        """Return the loop's generators and those of its loader, by name."""
        found = {f"loader {i}": g for i, g in generators_of(self._loader).items()}
        return {**self.generators, **found}


def _sort_state(
    optimizers: Mapping[str, Optimizer], state: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, torch.Generator]]:
    if state is None:
        return {}, {}
    own = {
        f"{name}optimizer": o
        for name, o in optimizers.items()
        if all(o is not v for v in state.values())
    }
    generators = {n: v for n, v in state.items() if isinstance(v, torch.Generator)}
    parts = {**own, **{n: v for n, v in state.items() if n not in generators}}
    for name, part in parts.items():
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise TypeError(
                f"state[{name!r}] is a {type(part).__name__}: expected what has state_dict and "
                "load_state_dict, or a torch.Generator"
            )
    return parts, generators


def _kept(name: str, value: Any) -> Any:
    if isinstance(value, str):  # a checkpoint holds no subclass, as numpy's or an enum
        return str.__str__(value)
    if value is None or isinstance(value, int | float):
        kinds = (bool, int, float)
        return next((plain(value) for plain in kinds if isinstance(value, plain)), None)
    if isinstance(value, Tensor) and value.numel() == 1:
        # The loop may change it in place; one on a card is read later, to keep the card busy.
        return value.item() if value.is_cpu else value.detach().clone()
    if getattr(value, "size", 0) == 1 and hasattr(value, "item"):
        return value.item()
    kind = type(value).__name__
    kind += f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    raise TypeError(f"log({name}=...): expected a number or a tensor of one element, got {kind}")
