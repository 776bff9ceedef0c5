"""The figures of a scaler at work show what the histories hold."""

import numpy as np
import pandas as pd
import pytest

from gqc_lab.figures import scaler as figures
from gqc_lab.loop.scaler_controls import LAW
from gqc_lab.studies.vgs import training as vgs_training


def make(alpha):
    values = {"steps": 60, "batch_size": 32, "width": 8, "beta": 0.98, "warmup_steps": 5}
    return vgs_training.build(vgs_training.config("smoke", alpha=alpha, device="cpu", **values))


def test_a_steered_run_is_drawn_with_its_changes():
    experiment = make(0.3)
    experiment.replay([{"microbatch": 30, "name": "alpha", "value": 0.0}])
    list(experiment)
    history = experiment.history
    figure = figures.variance_and_factor(history)
    curves = {trace.name: trace for trace in figure.data}
    assert list(curves) == ["p90", "p50", "p10", "V, which makes the factor", "factor"]
    assert list(curves["factor"].y) == pytest.approx(history["factor"].tolist(), rel=1e-4)
    assert list(curves["p50"].y) == pytest.approx(
        history["vgs/stochastic_var_p50"].tolist(), rel=1e-4
    )
    assert {shape.x0 for shape in figure.layout.shapes} == {30}
    with pytest.raises(ValueError, match="factor"):
        figures.variance_and_factor(history.drop(columns="factor"))


def test_what_if_lies_on_the_run_that_was_recorded_and_not_on_another():
    runs = {alpha: make(alpha) for alpha in (0.1, 0.5)}
    for run in runs.values():
        list(run)
    history = pd.concat([run.history for run in runs.values()], ignore_index=True)
    laws = {run.config.method: {n: run.controls[n] for n in LAW} for run in runs.values()}
    figure = figures.what_if_against_runs(history, laws, recorded="VGS, alpha 0.1")
    curves = {trace.name: np.array(trace.y) for trace in figure.data}
    same = curves["VGS, alpha 0.1"] - curves["what if: VGS, alpha 0.1"]
    other = curves["VGS, alpha 0.5"] - curves["what if: VGS, alpha 0.5"]
    assert abs(same).max() < 1e-4  # rounded for display
    assert abs(other).max() > 1e-3  # another factor, another training, another variance
