"""The same training at several alphas from one start: same weights, data and other controls.

Each runs in its own thread.  A run differs from the others only in its control ``alpha``, and its
history says so, as for every steered run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gqc_lab import Experiment
from gqc_lab.loop.curves import XY
from gqc_lab.loop.gate import FAILED, RUNNING
from gqc_lab.loop.jupyter import Cell
from gqc_lab.loop.live import Live
from gqc_widgets.status import progress_text

Listener = Callable[["SideBySide"], None]


class SideBySide:
    """Train twins of ``experiment``, one for each alpha.

    Args:
        experiment: with a method ``twin`` and the control ``alpha``.
        cell: whose runs they are; when it runs again, they are stopped.
    Attributes:
        runners: alpha -> its `Live`, from the last `start`.
        listeners: called with this object when there is news of a run, from its thread.
    """

    def __init__(self, experiment: Experiment, cell: Cell | None = None) -> None:
        self.experiment = experiment
        self.runners: dict[float, Live] = {}
        self.listeners: list[Listener] = []
        self._cell = cell

    def start(
        self,
        alphas: Sequence[float],
        state: Mapping[str, Any] | None = None,
        estimator: str | None = None,
    ) -> None:
        """Stop earlier runs, and train a twin for each of ``alphas`` with the present controls.

        Args:
            state: of the experiment, from which they start; None: start at the beginning.
            estimator: of the variance, if not that of the experiment; needs ``state`` None.
        Raises: ValueError: a state together with another estimator, or an invalid alpha.
        """
        self.stop()
        twins = {alpha: self._twin(alpha, state, estimator) for alpha in alphas}
        self.runners = {alpha: Live(twin, cell=self._cell) for alpha, twin in twins.items()}
        for runner in self.runners.values():
            runner.listeners.append(self._tell)
        for runner in self.runners.values():
            runner.start()

    def _twin(
        self, alpha: float, state: Mapping[str, Any] | None, estimator: str | None
    ) -> Experiment:
        twin: Experiment = self.experiment.twin(estimator)  # type: ignore[attr-defined]
        if state is not None:
            if twin.config != self.experiment.config:
                raise ValueError(
                    f"estimator={estimator!r}: another estimator has other statistics; start at "
                    "the beginning"
                )
            twin.load_state_dict(copy.deepcopy(dict(state)))
        twin.replay([])  # changes to be replayed in the experiment are not replayed in its twins
        twin.controls.update({**self.experiment.controls, "alpha": alpha})
        return twin

    def stop(self) -> None:
        """End all runs for good."""
        for runner in self.runners.values():
            runner.pause()
        for runner in self.runners.values():
            runner.stop()

    @property
    def is_running(self) -> bool:
        """Whether one of the runs is training."""
        return any(runner.state == RUNNING for runner in self.runners.values())

    @property
    def errors(self) -> list[str]:
        """Tracebacks of the runs that failed."""
        return [r.error for r in self.runners.values() if r.state == FAILED and r.error]

    def progress(self) -> dict[float, str]:
        """Return for each alpha how far its run is, and its last held-out loss."""
        found = {}
        for alpha, runner in self.runners.items():
            validation = runner.curves.points("val_loss")[1]
            loss = f" · validation loss {validation[-1]:.4g}" if len(validation) else ""
            found[alpha] = f"{runner.state}, {progress_text(runner)}{loss}"
        return found

    def points(self, name: str) -> list[XY]:
        """Return the curve ``name`` of each run, in the order of the alphas."""
        return [runner.curves.points(name) for runner in self.runners.values()]

    def _tell(self, _: Live) -> None:
        for listener in list(self.listeners):
            listener(self)
