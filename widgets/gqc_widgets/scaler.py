"""What the alpha tuner shows: factors of a run, and what other settings would have made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gqc_lab import Controls
from gqc_lab.loop.curves import XY, thin
from gqc_lab.loop.live import Live
from gqc_lab.loop.scaler_controls import COUNT, LAW, NAMES, VARIANCE, scaled_steps, what_if

PERCENTILES = ("p10", "p50", "p90")


class ScalerModel:
    """The variance scaler of one run, before it and while it trains, and a guess next to it.

    Args:
        live: with the controls of `gqc_lab.loop.scaler_controls`.
        recorded: history of a run for `what_if`; None: that of ``live`` so far.
    Attributes:
        guess: controls with other settings, which no run follows.
    Raises: ValueError: the run has no such controls, or ``recorded`` no variances.
    """

    def __init__(self, live: Live, recorded: pd.DataFrame | None = None) -> None:
        self.live, self.controls = live, live.experiment.controls
        if not set(NAMES) <= set(self.controls):
            raise ValueError(
                f"experiment {live.label!r} has no variance scaler: expected controls "
                f"{', '.join(NAMES)}, as with method='vgs'"
            )
        self.guess = Controls({name: self.controls.specs[name] for name in LAW})
        self.guess.update({name: self.controls[name] for name in LAW})
        self.x = live.experiment.unit
        self.is_recorded = recorded is not None
        if recorded is not None:
            self.x = next((x for x in (self.x, "tokens", "examples") if x in recorded), self.x)
            self._steps = scaled_steps({str(name): recorded[name] for name in recorded}, self.x)

    @property
    def steps(self) -> dict[str, Any]:
        """The `scaled_steps` of the recorded run, or of this one so far."""
        if self.is_recorded:
            return self._steps
        curves = self.live.curves
        columns = {name: curves.column(name) for name in ("factor", VARIANCE, COUNT, self.x)}
        return scaled_steps({**columns, "stepped": curves.column("stepped") == 1}, self.x)

    def what_if(self) -> dict[str, XY]:
        """Return the curves ``recorded`` and ``what_if``: the factor as it was, and as guessed."""
        steps = self.steps
        values = {"recorded": steps["factor"], "what_if": what_if(steps, self.guess)}
        return {name: thin(steps[self.x], y) for name, y in values.items()}

    def what_if_note(self) -> str:
        """Return the guess in numbers, after the longer of both warmups; empty before its end."""
        steps, guess = self.steps, self.guess
        warmup = max(guess["warmup_steps"], self.controls["warmup_steps"])
        is_warm = steps["count"] >= warmup
        if not is_warm.any():
            return ""
        factor = what_if(steps, guess)[is_warm]
        least = float(np.mean(factor <= guess["min_scaling_factor"]))
        text = (
            f"after {warmup} steps of warmup: mean factor {steps['factor'][is_warm].mean():.3f} "
            f"recorded, {factor.mean():.3f} what if ({least:.0%} of steps at the smallest factor)"
        )
        most = steps["variance"].max()
        at_most = float(np.mean(steps["variance"][is_warm] == most))
        if at_most > 0.01 and (guess["variance_cap"] or np.inf) > most:
            text += f"; the record is cut at a variance of {most:.3g}, in {at_most:.0%} of steps"
        return text

    def factors_at(self) -> dict[str, XY]:
        """Return the factor that each percentile of V over tensors gives now, by ``at pNN``."""
        law = {name: self.controls[name] for name in LAW}
        found = {}
        for level in PERCENTILES:
            x, variance = self.live.curves.points(f"vgs/stochastic_var_{level}")
            always = {"variance": variance, "count": np.full(len(variance), np.inf)}
            found[f"at {level}"] = x, what_if(always, law)
        return found

    def cap(self) -> XY:
        """Return the present cap of V as a horizontal line; empty without a cap."""
        x, _ = self.live.curves.points(VARIANCE)
        cap = self.controls["variance_cap"]
        shown = x[[0, -1]] if len(x) and cap else x[:0]
        return shown, np.full(len(shown), float(cap or 0))
