"""The same training at several alphas from one start: weights, data and other controls alike.

Each runs in a thread of its own.  A run differs from the others in its control ``alpha`` alone, and
its history says so, as that of every steered run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gqc_lab import Experiment
from gqc_widgets.display import Points
from gqc_widgets.runner import FAILED, RUNNING, Runner
from gqc_widgets.status import progress_text

Listener = Callable[["SideBySide"], None]


class SideBySide:
    """Runs of twins of ``experiment``.

    Args:
        experiment: with a method ``twin`` and the control ``alpha``.
        enter: as of `Runner`.
    Attributes:
        runners: by alpha, those of the last `start`.
        listeners: called with this when there is news of one of them, from its thread.
    """

    def __init__(self, experiment: Experiment, enter: Callable[[], None] | None = None) -> None:
        self.experiment = experiment
        self.runners: dict[float, Runner] = {}
        self.listeners: list[Listener] = []
        self._enter = enter

    def start(
        self,
        alphas: Sequence[float],
        state: Mapping[str, Any] | None = None,
        estimator: str | None = None,
    ) -> None:
        """Stop what ran, and train a twin for each of ``alphas``, under the present controls.

        Args:
            state: of the experiment, where they start; None: at the beginning.
            estimator: of the variance; another than the experiment's starts at the beginning.
        Raises: ValueError: a state with another estimator, or an alpha that is none.
        """
        self.stop()
        twins = {alpha: self._twin(alpha, state, estimator) for alpha in alphas}
        self.runners = {alpha: Runner(twin, self._enter) for alpha, twin in twins.items()}
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
        twin.replay([])  # what was planned for the experiment is not planned for its twins
        twin.controls.update({**self.experiment.controls, "alpha": alpha})
        return twin

    def stop(self) -> None:
        """End them, for good."""
        for runner in self.runners.values():
            runner.pause()
        for runner in self.runners.values():
            runner.stop()

    @property
    def is_running(self) -> bool:
        """Does one of them go on?"""
        return any(runner.state == RUNNING for runner in self.runners.values())

    @property
    def errors(self) -> list[str]:
        """Tracebacks of those that failed."""
        return [r.error for r in self.runners.values() if r.state == FAILED and r.error]

    def progress(self) -> dict[float, str]:
        """How far each is, and the last held-out loss."""
        found = {}
        for alpha, runner in self.runners.items():
            validation = runner.curves.points("val_loss")[1]
            loss = f" · validation loss {validation[-1]:.4g}" if validation else ""
            found[alpha] = f"{runner.state}, {progress_text(runner)}{loss}"
        return found

    def points(self, name: str) -> list[Points]:
        """The curve ``name`` of each, in the order of the alphas."""
        return [runner.curves.points(name) for runner in self.runners.values()]

    def _tell(self, _: Runner) -> None:
        for listener in list(self.listeners):
            listener(self)
