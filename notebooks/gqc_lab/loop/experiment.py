"""An experiment is an iterator of records: one microbatch each, nothing drawn, printed or slept.

`Experiment` owns the loop and what every experiment needs: live controls, history, exact resume.  A
concrete experiment (one file in ``gqc_lab.studies``) supplies what is trained on what, by
overriding a few methods::

    set_hyperparameters   this microbatch's learning rate, threshold, ... from schedules, controls
    draw_batch            the data of one microbatch
    compute_loss          the loss to differentiate
    update                backward and step; override to scale gradients or to clip in between
    amount                how far this batch goes towards `total`
    measure               further fields of the record
    is_evaluation_due, evaluate     held-out numbers, now and then
    summary               result numbers
"""

from __future__ import annotations

import copy
import dataclasses
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from gqc_lab.loop.controls import Controls

FORMAT = 1
Change = dict[str, Any]


class Experiment(Iterator[dict[str, Any]]):
    """One run, from a config to its last record.

    A run that is cut between any two microbatches and resumed with `load_state_dict` in a new
    process is bit-identical to the uncut run on the same machine, in all but ``seconds``.

    Args:
        config: frozen dataclass of plain values; part of a checkpoint's identity.
        label: short name for legends and file names.
        total: when the run ends, in `unit`.
        parts: what is trained and what trains it, by name; each has ``state_dict`` and
            ``load_state_dict``.
        generators: the random streams, by name.
        controls: what may be changed while it runs.
        constants: columns that are the same in every row of the history, such as method and seed.
        data_hash: of the data; part of a checkpoint's identity.
    """

    unit: ClassVar[str] = "tokens"  #: what `total` and `done` count; also a key of the records
    loss_unit: ClassVar[str] = ""  #: of ``loss`` and ``val_loss``, for axes
    evaluated: ClassVar[tuple[str, ...]] = ()  #: keys of `evaluate`, None in other records
    measured: tuple[str, ...] = ()  #: keys of `measure` that a view wants to know before a record

    def __init__(
        self,
        config: Any,
        *,
        label: str,
        total: int,
        parts: Mapping[str, Any],
        generators: Mapping[str, torch.Generator],
        controls: Controls | None = None,
        constants: Mapping[str, Any] | None = None,
        data_hash: str = "",
    ) -> None:
        self.config = config
        self.label = label
        self.total = total
        self.parts = dict(parts)
        self.generators = dict(generators)
        self.controls = Controls({}) if controls is None else controls
        self.constants = dict(constants or {})
        self.data_hash = data_hash
        self.microbatch = 0
        self.done = 0
        self.seconds = 0.0  #: training time, without evaluations and pauses
        self.changes: list[Change] = []  #: controls that changed: microbatch, name, value
        self._plan: list[Change] = []
        self._columns: dict[str, list[Any]] = {}
        self._lock = (
            threading.RLock()
        )  # a save or a plot from another thread waits for the microbatch
        self._is_inside = False

    # ---- what a concrete experiment supplies

    def set_hyperparameters(self) -> None:
        """Set this microbatch's hyperparameters, from ``self.controls.applied`` and
        ``self.done``."""

    def draw_batch(self) -> Any:
        """The data of one microbatch; randomness from ``self.generators`` only."""
        raise NotImplementedError

    def compute_loss(self, batch: Any) -> Tensor:
        """The loss of ``batch``, a scalar."""
        raise NotImplementedError

    def update(self, loss: Tensor) -> bool:
        """Differentiate and let the optimizer decide; returns whether it stepped."""
        loss.backward()
        return self.parts["optimizer"].step() is not False  # a plain optimizer returns None

    def amount(self, batch: Any) -> int:
        """How many of `unit` this batch is."""
        raise NotImplementedError

    def measure(self, batch: Any, stepped: bool) -> dict[str, Any]:
        """Further fields of the record: plain numbers, strings or None."""
        return {}

    def is_evaluation_due(self) -> bool:
        """Shall this record hold held-out numbers?"""
        return self.done >= self.total

    def evaluate(self) -> dict[str, float]:
        """Held-out numbers, with the keys of `evaluated`."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Result numbers so far, flat and plain."""
        rate = self.done / self.seconds if self.seconds > 0 else None
        return {
            **self.constants,
            self.unit: self.done,
            "microbatches": self.microbatch,
            "seconds": self.seconds,
            f"{self.unit}_per_second": rate,
            "is_steered": self.is_steered,
        }

    # ---- the loop

    def __iter__(self) -> Experiment:
        return self

    def __next__(self) -> dict[str, Any]:
        """Train on one microbatch and return its record."""
        with self._lock:
            if self.done >= self.total:
                raise StopIteration
            self._check_whole()
            self._is_inside = True
            record = self._advance()
            self._is_inside = False
            return record

    def _advance(self) -> dict[str, Any]:
        started = time.perf_counter()
        changes = self._apply_changes()
        self.set_hyperparameters()
        batch = self.draw_batch()
        loss = self.compute_loss(batch)
        stepped = self.update(loss)
        self.microbatch += 1
        self.done += self.amount(batch)
        record = {
            "microbatch": self.microbatch,
            self.unit: self.done,
            "seconds": 0.0,
            "loss": loss.item(),
            "stepped": stepped,
            **self.measure(batch, stepped),
        }
        self.seconds += time.perf_counter() - started
        record["seconds"] = self.seconds
        record.update(dict.fromkeys(self.evaluated))
        if self.is_evaluation_due():
            record.update(self.evaluate())
        record["changes"] = json.dumps(changes) if changes else None
        self._append(record)
        return record

    def _append(self, record: dict[str, Any]) -> None:
        rows = self.microbatch - 1
        for name in record:
            self._columns.setdefault(name, [None] * rows)
        for name, column in self._columns.items():
            column.append(record.get(name))

    def _check_whole(self) -> None:
        if self._is_inside:
            raise RuntimeError(
                f"experiment {self.label!r} was interrupted inside microbatch "
                f"{self.microbatch + 1}; build it anew and load its last checkpoint"
            )

    @property
    def is_whole(self) -> bool:
        """Between two microbatches, as ever but after an exception from inside one."""
        return not self._is_inside

    # ---- controls

    @property
    def is_steered(self) -> bool:
        """Was a control changed on the way, by hand or by `replay`?"""
        return bool(self.changes)

    def replay(self, changes: Iterable[Change]) -> None:
        """Repeat the recorded `changes` of another run at the microbatches where they were applied.

        Args:
            changes: dicts of ``microbatch`` (the first record under the new value), ``name``,
                ``value``.
        Raises:
            ValueError: a change that the controls refuse, or of a microbatch that is past.
        """
        with self._lock:
            plan = sorted((dict(c) for c in changes), key=lambda c: c["microbatch"])
            values: dict[str, Any] = dict(self.controls)
            for at, together in _by_microbatch(plan).items():
                if not at > self.microbatch:
                    raise ValueError(
                        f"change of microbatch {at}: expected one after {self.microbatch}, "
                        "which is done"
                    )
                values = self.controls.check(values, together)
            self._plan = plan

    def _apply_changes(self) -> dict[str, Any]:
        number = self.microbatch + 1
        if self._plan and self._plan[0]["microbatch"] == number:
            self.controls.update(_by_microbatch(self._plan)[number])
            self._plan = [c for c in self._plan if c["microbatch"] != number]
        changes = self.controls.apply()
        self.changes += [
            {"microbatch": number, "name": name, "value": value} for name, value in changes.items()
        ]
        return changes

    # ---- history

    def column(self, name: str) -> list[Any]:
        """One column of the history, a copy, also while another thread trains; none: empty.

        Unlike `history` it does not wait for the microbatch under way, so that columns that are
        asked for one after the other may differ in length.
        """
        return list(self._columns.get(name, ()))

    @property
    def history(self) -> pd.DataFrame:
        """One row per record, with the constants as first columns; a copy."""
        with self._lock:
            rows = self.microbatch
            columns = {name: list(column) for name, column in self._columns.items()}
        frame = pd.DataFrame(columns)
        for name in frame:
            if name == "changes":
                frame[name] = frame[name].astype("string")
            elif frame[name].isna().all():  # else pandas makes it a column of objects
                frame[name] = frame[name].astype(float)
        for at, (name, value) in enumerate(self.constants.items()):
            frame.insert(at, name, [value] * rows)
        return frame

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; ``torch.load(..., weights_only=True)`` reads it.

        The tensors are the live ones, as in torch: save or deep-copy it before training goes on.

        Raises:
            RuntimeError: the run was interrupted inside a microbatch.
        """
        with self._lock:
            self._check_whole()
            return {
                **self.identity(),
                "microbatch": self.microbatch,
                "done": self.done,
                "seconds": self.seconds,
                "parts": {name: part.state_dict() for name, part in self.parts.items()},
                "generators": {name: g.get_state() for name, g in self.generators.items()},
                "controls": self.controls.state_dict(),
                "changes": [dict(c) for c in self.changes],
                "plan": [dict(c) for c in self._plan],
                "columns": {name: list(column) for name, column in self._columns.items()},
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: the state is of another experiment, config, data or format, or incomplete;
                nothing has changed then.
        """
        with self._lock:
            self._check_identity(state)
            # Loading overwrites what it finds, also after an interruption inside a microbatch.
            was_inside, self._is_inside = self._is_inside, False
            before = copy.deepcopy(self.state_dict())
            try:
                self._restore(state)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                self._restore(before)
                self._is_inside = was_inside
                raise ValueError(
                    f"checkpoint of {self.label!r} is incomplete or damaged: {error!r}; "
                    "nothing was loaded"
                ) from error

    def _restore(self, state: Mapping[str, Any]) -> None:
        columns = {name: list(column) for name, column in state["columns"].items()}
        if any(len(column) != state["microbatch"] for column in columns.values()):
            raise ValueError("its history has not one row per microbatch")
        for name, part in self.parts.items():
            if isinstance(part, torch.nn.Module):
                part.zero_grad(set_to_none=True)  # pending gradients belong to the state that goes
            part.load_state_dict(state["parts"][name])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        self.controls.load_state_dict(state["controls"])
        self.microbatch, self.done = state["microbatch"], state["done"]
        self.seconds = state["seconds"]
        self.changes = [dict(c) for c in state["changes"]]
        self._plan = [dict(c) for c in state["plan"]]
        self._columns = columns

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the experiment that loads it."""
        return {
            "format": FORMAT,
            "experiment": type(self).__name__,
            "data_hash": self.data_hash,
            "config": dataclasses.asdict(self.config),
        }

    def _check_identity(self, state: Mapping[str, Any]) -> None:
        mine = self.identity()
        mine_config = mine.pop("config")
        other, other_config = {key: state.get(key) for key in mine}, state.get("config")
        wanted_values = {**mine, **mine_config}
        found_values = {**other, **(other_config if isinstance(other_config, dict) else {})}
        for name in {**wanted_values, **found_values}:
            wanted, found = wanted_values.get(name), found_values.get(name)
            if wanted != found:
                raise ValueError(
                    f"checkpoint is not of this experiment: its {name} is {found!r}, here it is "
                    f"{wanted!r}; use another checkpoint or run folder"
                )


def _by_microbatch(changes: Iterable[Change]) -> dict[int, dict[str, Any]]:
    together: dict[int, dict[str, Any]] = {}
    for change in changes:
        together.setdefault(change["microbatch"], {})[change["name"]] = change["value"]
    return together
