"""The training loop of every study: an iterator that yields a record for each microbatch.

A study overrides methods, from `set_hyperparameters` to `summary`, to say what is trained on which
data.
"""

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

from gqc_lab.loop.controls import Change, Controls, by_microbatch, listed
from gqc_lab.loop.placement import random_state, set_random_state

FORMAT = 1


class Experiment(Iterator[dict[str, Any]]):
    """One run, from its config to its last record.

    A run that is stopped between two microbatches and resumed with `load_state_dict` in a new
    process is bit-identical to an uninterrupted run on the same machine, except for ``seconds``.
    Records have ``microbatch``, `unit`, ``seconds``, ``loss``, ``stepped``, ``changes``, and more.

    Args:
        config: a frozen dataclass of plain values; part of a checkpoint's identity.
        label: a short name for legends and files.
        total: where the run ends, in `unit`.
        parts: model, optimizer, ... by name; each has ``state_dict`` and ``load_state_dict``.
        generators: the random streams by name.
        controls: what may be changed during the run.
        constants: columns with one value for the whole history, such as method and seed.
        data_hash: the hash of the data; part of a checkpoint's identity.
    """

    unit: ClassVar[str] = "tokens"  #: what `total` and `done` count; also a key of the records
    loss_unit: ClassVar[str] = ""  #: the unit of ``loss`` and ``val_loss``, for axes
    evaluated: ClassVar[tuple[str, ...]] = ()  #: keys of `evaluate`; None in other records
    measured: tuple[str, ...] = ()  #: keys of `measure`, known before the first record

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
        self._columns: dict[str, list[Any]] = {}
        self.saved: dict[Any, Any] = {}  # what of the history is on disk, by file
        # A save or a plot from another thread waits for the microbatch in progress.
        self._lock = threading.RLock()
        self._is_inside = False

    def set_hyperparameters(self) -> None:
        """Set the hyperparameters for ``self.controls.applied`` and ``self.done``."""

    def draw_batch(self) -> Any:
        """Return the data of one microbatch, drawn with ``self.generators`` only."""
        raise NotImplementedError

    def compute_loss(self, batch: Any) -> Tensor:
        """Return the loss of ``batch``, a scalar."""
        raise NotImplementedError

    def update(self, loss: Tensor) -> bool:
        """Differentiate, let the optimizer decide, and return whether it stepped."""
        loss.backward()
        return self.parts["optimizer"].step() is not False  # a plain optimizer returns None

    def amount(self, batch: Any) -> int:
        """Return how many of `unit` are in this batch."""
        raise NotImplementedError

    def measure(self, batch: Any, stepped: bool) -> dict[str, Any]:
        """Return further fields of the record: numbers, texts or None."""
        return {}

    def is_evaluation_due(self) -> bool:
        """Return whether this record needs held-out numbers."""
        return self.done >= self.total

    def evaluate(self) -> dict[str, float]:
        """Return held-out numbers under the keys of `evaluated`."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Return the result numbers so far, flat and plain."""
        return {
            **self.constants,
            self.unit: self.done,
            "microbatches": self.microbatch,
            "seconds": self.seconds,
            f"{self.unit}_per_second": self.done / self.seconds if self.seconds > 0 else None,
            "is_steered": self.is_steered,
        }

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
        changes = self.controls.advance(self.microbatch + 1)
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
        record |= {"seconds": self.seconds, **dict.fromkeys(self.evaluated)}
        if self.is_evaluation_due():
            record.update(self.evaluate())
        record["changes"] = json.dumps(changes) if changes else None
        append(self._columns, record)
        return record

    def _check_whole(self) -> None:
        if self._is_inside:
            raise RuntimeError(
                f"experiment {self.label!r} was interrupted inside microbatch "
                f"{self.microbatch + 1}; build it again and load its last checkpoint"
            )

    @property
    def is_whole(self) -> bool:
        """Whether the state is that of a whole microbatch: not within one, or after its error."""
        return not self._is_inside

    @property
    def is_settled(self) -> bool:
        """Whether it is saved here by itself; a loop that accumulates by hand waits for a step."""
        return self.is_whole

    @property
    def changes(self) -> list[Change]:
        """Controls that were changed during the run: microbatch, name, value."""
        return self.controls.changes

    @property
    def is_steered(self) -> bool:
        """Whether a control was changed during the run, by hand or by `replay`."""
        return bool(self.changes)

    def replay(self, changes: Iterable[Change]) -> None:
        """Repeat the changes of another run; see `Controls.replay`."""
        with self._lock:
            self.controls.replay(changes, self.microbatch + self._is_inside)

    @property
    def column_names(self) -> list[str]:
        """The names of the history's columns, without the constants."""
        return list(self._columns)

    def column(self, name: str, start: int = 0) -> list[Any]:
        """Return a copy of a column from record ``start``; empty if there is none.

        While another thread trains two columns may differ in length, as this does not wait for it.
        """
        return self._columns.get(name, [])[start:]

    def last(self, name: str) -> Any:
        """Return the last value of a column, None before the first; NaN is one that diverged."""
        return next((v for v in reversed(self._columns.get(name, [])) if v is not None), None)

    @property
    def history(self) -> pd.DataFrame:
        """A copy of the history: one row per record, the constants as its first columns."""
        with self._lock:
            columns = {name: list(column) for name, column in self._columns.items()}
        frame = pd.DataFrame(columns)
        for name in frame:
            if name == "changes":
                frame[name] = frame[name].astype("string")
            elif frame[name].isna().all():  # else pandas makes it a column of objects
                frame[name] = frame[name].astype(float)
        for at, (name, value) in enumerate(self.constants.items()):
            frame.insert(at, name, [value] * len(frame))
        return frame

    def state_dict(self, start: int = 0) -> dict[str, Any]:
        """Return all that a resumed run needs, with the history from record ``start`` on.

        As in torch the tensors are the live ones: save or copy them before training continues.

        Raises: RuntimeError: the run was interrupted inside a microbatch.
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
                "random": random_state({}),  # the global generators: dropout draws from them
                "controls": self.controls.state_dict(),
                "changes": [dict(c) for c in self.changes],
                "plan": listed(self.controls.planned),
                "columns": {name: column[start:] for name, column in self._columns.items()},
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state_dict` was taken.

        Raises: ValueError: it is incomplete, or of another experiment, config, data or format;
            nothing has changed then.
        """
        with self._lock:
            self._check_identity(state)
            # Loading repairs a run that was interrupted inside a microbatch.
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
        for part in self.parts.values():
            if isinstance(part, torch.nn.Module):
                part.zero_grad(set_to_none=True)  # pending gradients belong to the old state
        for name, part in self.parts.items():  # of which a wrapper may load new ones
            part.load_state_dict(state["parts"][name])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        set_random_state(state.get("random") or random_state({}), {})  # older files have none
        self.controls.load_state_dict(state["controls"])
        self.microbatch, self.done = state["microbatch"], state["done"]
        self.seconds = state["seconds"]
        self.controls.changes = [dict(c) for c in state["changes"]]
        self.controls.planned = by_microbatch(state["plan"])
        self._columns, self.saved = columns, {}

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must have in common with the experiment that loads it."""
        return {
            "format": FORMAT,
            "experiment": type(self).__name__,
            "data_hash": self.data_hash,
            "config": dataclasses.asdict(self.config),
        }

    def _check_identity(self, state: Mapping[str, Any]) -> None:
        identity = self.identity()
        config = state.get("config")
        found = {name: state.get(name) for name in identity}
        found |= config if isinstance(config, dict) else {}
        expected = identity | identity["config"]
        for name in {**expected, **found}:
            if name != "config" and expected.get(name) != found.get(name):
                raise ValueError(
                    f"checkpoint is not of this experiment: its {name} is {found.get(name)!r}, "
                    f"here it is {expected.get(name)!r}; use another checkpoint or run folder"
                )


def append(columns: dict[str, list[Any]], record: Mapping[str, Any]) -> None:
    """Append a record to the columns of a history; a new column gets None for earlier ones."""
    for name in record:
        if name not in columns:
            columns[name] = [None] * (record["microbatch"] - 1)
    for name, column in columns.items():
        column.append(record.get(name))
