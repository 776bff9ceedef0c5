"""What another law would have made of a recorded variance, against runs that had that law."""

import math

import numpy as np
import pytest

from gqc_lab.loop.scaler_controls import LAW, NAMES, scaled_steps, what_if
from gqc_lab.studies import pretraining
from gqc_lab.studies.vgs import training as vgs_training


def run(experiment):
    return list(experiment) and experiment


def watch(**overrides):
    """A run that measures and does not scale, so that another law meets the same gradients."""
    values = {"steps": 80, "batch_size": 4, "width": 8, "beta": 0.9, "warmup_steps": 5}
    return vgs_training.build(vgs_training.config("smoke", device="cpu", **values | overrides))


def settings(experiment, **changes):
    return {name: experiment.controls[name] for name in LAW} | changes


@pytest.mark.parametrize("warmup", [0, 5])
def test_a_runs_own_law_gives_the_factors_that_it_recorded(warmup):
    experiment = run(watch(alpha=0.3, warmup_steps=warmup))
    steps = scaled_steps(experiment.history, "examples")
    assert steps["examples"].tolist() == experiment.history["examples"].tolist()
    found = what_if(steps, settings(experiment))
    np.testing.assert_allclose(found, experiment.history["factor"], rtol=1e-6)  # float32 there
    assert found.min() < 0.5


def test_another_law_is_the_formula_on_the_variance_before_the_step():
    experiment = run(watch(alpha=0.0))
    history = experiment.history
    steps = scaled_steps(history, "microbatch")
    law = {"alpha": 0.7, "warmup_steps": 9, "min_scaling_factor": 0.2, "variance_cap": 6.0}
    expected = []
    for i in range(80):
        v = history["vgs/normalized_variance"][i - 1] if i else 0.0
        expected.append(1.0 if i < 9 else max(1 / (1 + 0.7 * min(v, 6.0)), 0.2))
    assert what_if(steps, law).tolist() == pytest.approx(expected, rel=1e-12)
    assert 0.2 in expected
    uncapped = what_if(steps, law | {"variance_cap": 0.0, "min_scaling_factor": 0.0})
    assert uncapped.min() == pytest.approx(1 / (1 + 0.7 * 50.0))  # the cap of the record


def test_windows_have_a_factor_where_they_close():
    scaled = {"vgs_alpha": 0.5, "vgs_beta": 0.9, "vgs_warmup_steps": 3}
    sizes = {"method": "adamw", "accumulation": 3, "tokens": 60 * 512, "device": "cpu"}
    experiment = run(pretraining.build(pretraining.config("smoke", **sizes, **scaled)))
    history = experiment.history
    steps = scaled_steps(history, "tokens")
    closed = history[history["stepped"]]
    assert len(closed) == 20
    assert steps["tokens"].tolist() == closed["tokens"].tolist()
    np.testing.assert_allclose(what_if(steps, settings(experiment)), closed["factor"], rtol=1e-6)


def test_statistics_that_started_afresh_are_followed():
    experiment = watch(alpha=0.5, warmup_steps=0)
    for _ in range(30):
        next(experiment)
    experiment.controls["beta"] = 0.8
    run(experiment)
    steps = scaled_steps(experiment.history, "microbatch")
    assert steps["count"][28:32].tolist() == [28, 29, 0, 1]
    found = what_if(steps, settings(experiment))
    assert found[30] == 1.0
    np.testing.assert_allclose(found, experiment.history["factor"], rtol=1e-6)


def test_columns_that_another_thread_lengthens_are_cut_to_the_shortest():
    experiment = run(watch())
    whole = {name: experiment.column(name) for name in experiment.history}
    uneven = whole | {"factor": whole["factor"][:70], "stepped": whole["stepped"][:75]}
    steps = scaled_steps(uneven, "examples")
    assert {len(column) for column in steps.values()} == {70}
    empty = scaled_steps({name: [] for name in whole}, "examples")
    assert {len(column) for column in empty.values()} == {0}
    assert len(what_if(empty, settings(experiment))) == 0


def test_a_run_without_a_scaler_is_refused():
    experiment = run(pretraining.build(pretraining.config("smoke", tokens=5 * 512)))
    with pytest.raises(ValueError, match="expected a run with a variance scaler"):
        scaled_steps(experiment.history, "tokens")
    assert not set(NAMES) <= set(experiment.controls)
    assert set(NAMES) <= set(watch().controls)
    assert all(math.isfinite(watch().controls[name]) for name in NAMES)
