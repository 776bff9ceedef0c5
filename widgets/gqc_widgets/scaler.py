"""What the alpha tuner shows: the scaler's settings, and what others would have made of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import yaml

from gqc_lab import Controls, Experiment
from gqc_lab.figures import thin
from gqc_lab.loop.scaler_controls import (
    COUNT,
    LAW,
    NAMES,
    VARIANCE,
    has_scaler,
    scaled_steps,
    scaler_settings,
    what_if,
)
from gqc_widgets.display import Curves, Points
from gqc_widgets.draft import Draft

PERCENTILES = ("p10", "p50", "p90")


class ScalerModel:
    """The variance scaler of one experiment, before and while it runs, and a guess beside it.

    Args:
        experiment: with the controls of `gqc_lab.loop.scaler_controls`.
        recorded: history of one run, for `what_if`; None: of ``experiment``, as far as it is.
    Attributes:
        draft: edits of the experiment's controls.
        guess: edits of other values of the law, which no run follows.
    Raises: ValueError: the experiment has no such controls, or ``recorded`` no variances.
    """

    def __init__(self, experiment: Experiment, recorded: pd.DataFrame | None = None) -> None:
        if not has_scaler(experiment.controls):
            raise ValueError(
                f"experiment {experiment.label!r} has no variance scaler: expected controls "
                f"{', '.join(NAMES)}, as with method='vgs'"
            )
        self.experiment = experiment
        self.controls = experiment.controls
        self.draft = Draft(self.controls)
        guess = Controls({name: self.controls.specs[name] for name in LAW})
        guess.update({name: self.controls[name] for name in LAW})
        self.guess = Draft(guess)
        self.x = experiment.unit
        self._is_recorded = recorded is not None
        if recorded is not None:
            self.x = next((x for x in (self.x, "tokens", "examples") if x in recorded), self.x)
            self._steps = scaled_steps({str(name): recorded[name] for name in recorded}, self.x)
        self._length = -1  # of the history that _steps were made from

    # ---- what if

    @property
    def steps(self) -> dict[str, Any]:
        """`scaled_steps` of the recorded run; of the experiment's own, all that there are now."""
        if not self._is_recorded and self._length != self.experiment.microbatch:
            self._length = self.experiment.microbatch
            names = ("stepped", "factor", VARIANCE, COUNT, self.x)
            columns = {name: self.experiment.column(name) for name in names}
            self._steps = scaled_steps(columns, self.x)
        return self._steps

    @property
    def is_behind(self) -> bool:
        """Has the run grown by a fiftieth, or come to its end, since `steps` were looked at?

        To look at each update would cost ever more; so the cost of all looks stays in proportion.
        """
        now, is_over = self.experiment.microbatch, self.experiment.done >= self.experiment.total
        return now < self._length or now > 1.02 * self._length or (is_over and now > self._length)

    def what_if(self) -> dict[str, Points]:
        """Curves ``recorded`` and ``what_if``: the factor as it was, and under the guess."""
        steps = self.steps
        frame = pd.DataFrame({"x": steps[self.x], "recorded": steps["factor"]})
        frame["what_if"] = what_if(steps, self.guess.controls)
        found = {}
        for name in ("recorded", "what_if"):
            rows = thin(frame, name)
            found[name] = rows["x"].tolist(), rows[name].tolist()
        return found

    def what_if_note(self) -> str:
        """The guess in numbers, after the longer of both warmups; empty without such steps."""
        steps, guess = self.steps, self.guess.controls
        warmup = max(guess["warmup_steps"], self.controls["warmup_steps"])
        is_warm = steps["count"] >= warmup
        if not is_warm.any():
            return ""
        factor = what_if(steps, guess)[is_warm]
        least = float(np.mean(factor <= guess["min_scaling_factor"]))
        text = (
            f"after {warmup} steps of warmup: mean factor {steps['factor'][is_warm].mean():.3f} "
            f"recorded, {factor.mean():.3f} what if ({least:.0%} of steps at the least factor)"
        )
        most = steps["variance"].max()
        at_most = float(np.mean(steps["variance"][is_warm] == most))
        if at_most > 0.01 and (guess["variance_cap"] or np.inf) > most:
            text += f"; the record is cut at a variance of {most:.3g}, in {at_most:.0%} of steps"
        return text

    # ---- the run that goes on

    def factors_at(self, curves: Curves) -> dict[str, Points]:
        """What the present law makes of the percentiles of V over tensors, by ``at pNN``."""
        law = {name: self.controls[name] for name in LAW}
        found = {}
        for level in PERCENTILES:
            x, variance = curves.points(f"vgs/stochastic_var_{level}")
            values = np.asarray(variance, dtype=float)
            always = {"variance": values, "count": np.full(len(values), np.inf)}
            found[f"at {level}"] = x, what_if(always, law).tolist()
        return found

    def cap(self, curves: Curves) -> Points:
        """The present cap of V, as a level line over what is drawn; none without a cap."""
        x, _ = curves.points(VARIANCE)
        cap = self.controls["variance_cap"]
        return ([x[0], x[-1]], [cap, cap]) if x and cap else ([], [])

    # ---- what is kept

    def export(self) -> dict[str, Any]:
        """The settings as parameters for papermill: they can be run as a batch."""
        return scaler_settings(self.controls)

    def export_yaml(self) -> str:
        """`export` as the text of a YAML file for ``gqc run NOTEBOOK -f FILE``."""
        return yaml.safe_dump(self.export(), sort_keys=False)


def parse_alphas(text: str, controls: Mapping[str, Any]) -> list[float]:
    """Two or more strengths from a text such as ``0, 0.1, 0.5``.

    Raises: ValueError: fewer than two, one twice, or one that is no strength.
    """
    spec = Draft(Controls({"alpha": controls["alpha"]}))
    alphas = []
    for word in text.replace(";", ",").split(","):
        spec.edit("alpha", word)
        if spec.errors:
            raise ValueError(spec.errors["alpha"])
        alphas.append(spec.controls["alpha"])
    if len(set(alphas)) < 2 or len(set(alphas)) < len(alphas):
        raise ValueError(f"alphas={text!r}: expected two or more that differ, such as '0, 0.1'")
    return alphas
