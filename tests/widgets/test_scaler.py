"""What the alpha tuner shows and exports, without a browser; training follows its edits."""

import time

import numpy as np
import pandas as pd
import pytest
import yaml

from gqc_lab import Experiment, Live
from gqc_lab.loop.curves import LIMIT
from gqc_lab.loop.scaler_controls import LAW, scaled_steps, what_if
from gqc_lab.studies import pretraining
from gqc_lab.studies.vgs import training as vgs_training
from gqc_widgets import VGSAlphaTuner
from gqc_widgets.alpha_tuner import ScalerModel
from gqc_widgets.side_by_side import parse_alphas

NUM_STEPS = 60


def make(**overrides):
    values = {"steps": NUM_STEPS, "batch_size": 4, "width": 8, "beta": 0.9, "warmup_steps": 5}
    return vgs_training.build(vgs_training.config("smoke", device="cpu", **values | overrides))


def run(experiment, until=None):
    while experiment.microbatch != until and next(experiment, None) is not None:
        pass
    return experiment


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("alpha", "", "alpha='': expected a number of at least 0"),
        ("alpha", "much", "alpha='much': expected a number of at least 0"),
        ("alpha", "-0.1", "alpha=-0.1: expected a number of at least 0"),
        ("beta", "1", "beta=1.0: expected a number above 0 and below 1"),
        ("warmup_steps", "2.5", "warmup_steps=2.5: expected an integer"),
        ("percentile", "90", "percentile=90.0: expected a number of at least 0 and at most 1"),
        ("min_scaling_factor", "2", "min_scaling_factor=2.0"),
        ("variance_cap", "-1", "variance_cap=-1.0"),
    ],
)
def test_a_bad_field_says_so_and_training_keeps_the_last_good_value(name, content, message):
    experiment = make()
    fields, before = VGSAlphaTuner(experiment).fields, dict(experiment.controls)
    fields.edit(name, content)
    with pytest.raises(ValueError, match=message):
        raise ValueError(fields.messages[name])
    assert dict(experiment.controls) == before
    assert fields.values[name]["text"] == content
    fields.edit(name, str(before[name]))
    assert fields.messages == {}


def test_an_edit_counts_from_the_next_microbatch():
    experiment = run(make(), until=20)
    VGSAlphaTuner(experiment).fields.edit("alpha", "3")
    record = next(experiment)
    v = experiment.history["vgs/normalized_variance"][19]
    assert record["factor"] == pytest.approx(max(1 / (1 + 3 * min(v, 50)), 0.1), rel=1e-6)
    assert experiment.changes == [{"microbatch": 21, "name": "alpha", "value": 3.0}]


def test_the_guess_steers_nothing_and_begins_as_the_run_is():
    experiment = run(make(), until=20)
    experiment.controls["alpha"] = 0.3
    model, before = ScalerModel(Live(experiment)), dict(experiment.controls)
    assert dict(model.guess) == {name: before[name] for name in LAW}
    model.guess.update(alpha=9, warmup_steps=0)
    assert dict(experiment.controls) == before
    assert model.guess["alpha"] == 9


def test_what_if_is_the_law_on_the_record_and_follows_a_run_that_goes_on():
    experiment = run(make(), until=20)
    model = ScalerModel(live := Live(experiment))
    assert len(model.what_if()["recorded"][0]) == 20
    live.step(10)
    assert live.wait(600)
    model.guess["alpha"] = 0.7
    found = model.what_if()
    history = experiment.history
    assert found["recorded"][0].tolist() == history["examples"].tolist()
    assert found["recorded"][1].tolist() == history["factor"].tolist()
    v = [0.0, *history["vgs/normalized_variance"][:-1]]
    law = [1.0] * 5 + [max(1 / (1 + 0.7 * min(x, 50)), 0.1) for x in v[5:]]
    assert found["what_if"][1] == pytest.approx(law, rel=1e-12)
    note = model.what_if_note()
    assert f"mean factor {history['factor'][5:].mean():.3f} recorded" in note
    assert f"{np.mean(law[5:]):.3f} what if" in note


def test_a_saved_run_can_be_asked_instead():
    saved = run(make(seed=3)).history
    model = ScalerModel(Live(make()), recorded=saved)
    assert model.what_if()["recorded"][1].tolist() == saved["factor"].tolist()
    assert "cut" not in model.what_if_note()
    model.guess["variance_cap"] = 1000
    share = (saved["vgs/normalized_variance"].shift(fill_value=0)[5:] == 50).mean()
    assert f"cut at a variance of 50, in {share:.0%} of steps" in model.what_if_note()
    with pytest.raises(ValueError, match="expected a run with a variance scaler"):
        ScalerModel(Live(make()), recorded=saved.drop(columns="factor"))


def long_history(length=100_000):
    generator = np.random.default_rng(0)
    variance = generator.lognormal(1.0, 1.0, length).clip(max=50.0)
    before = np.concatenate([[0.0], variance[:-1]])
    factor = np.where(np.arange(length) < 100, 1.0, (1 / (1 + 0.1 * before)).clip(0.1, 1.0))
    frame = pd.DataFrame({"examples": 16 * np.arange(1, length + 1), "stepped": True})
    frame["vgs/normalized_variance"], frame["vgs/step_count"] = variance, np.arange(1, length + 1)
    return frame.assign(factor=factor)


def test_a_hundred_thousand_records_are_thinned_with_their_peaks_at_once():
    history = long_history()
    model = ScalerModel(Live(make()), recorded=history)
    model.guess["alpha"] = 0.5
    found = model.what_if()
    begun = time.process_time()
    history["vgs/normalized_variance"].sort_values()
    in_a_moment = 10 * (time.process_time() - begun)
    begun = time.process_time()
    model.what_if()
    assert time.process_time() - begun < in_a_moment + 0.02  # the clock ticks
    law = what_if(scaled_steps(history, "examples"), model.guess)
    for name, whole in (("recorded", history["factor"]), ("what_if", law)):
        x, y = found[name]
        assert len(x) <= LIMIT
        assert (min(y), max(y)) == (whole.min(), whole.max())
        assert (x[0], x[-1]) == (16, 1_600_000)


def test_single_percentiles_are_put_through_the_law():
    experiment = run(make(alpha=0.5))
    model = ScalerModel(Live(experiment))
    found = model.factors_at()
    for level in ("p10", "p50", "p90"):
        v = experiment.history[f"vgs/stochastic_var_{level}"].clip(upper=50)
        assert found[f"at {level}"][1] == pytest.approx((1 / (1 + 0.5 * v)).clip(0.1).tolist())
    assert [v.tolist() for v in model.cap()] == [[4, 4 * NUM_STEPS], [50, 50]]
    model.controls["variance_cap"] = 0
    assert [len(v) for v in model.cap()] == [0, 0]


def test_what_was_tuned_by_hand_is_exported_as_parameters_that_make_the_same_scaler():
    experiment = make()
    tuner = VGSAlphaTuner(experiment)
    edits = {"alpha": "0.7", "beta": "0.95", "warmup_steps": "7", "percentile": "0.5"}
    for name, content in {**edits, "min_scaling_factor": "0.2", "variance_cap": "0"}.items():
        tuner.fields.edit(name, content)
    tuner.button.click()
    parameters = yaml.safe_load(tuner.text.value)
    assert parameters == tuner.export()
    assert parameters["variance_cap"] is None
    assert dict(make(**parameters).controls) == dict(experiment.controls)


def test_a_scaler_inside_a_wrapper_can_be_tuned_too():
    config = pretraining.config("smoke", method="gnts", vgs_alpha=0.1, tokens=10 * 512)
    model = ScalerModel(Live(pretraining.build(config)))
    model.controls["alpha"] = 0.4
    model.live.start()
    assert model.live.wait(600)
    assert model.live.experiment.scaler.alpha == 0.4
    assert model.what_if()["recorded"][0][-1] <= 10 * 512


@pytest.mark.parametrize("method", ["adamw", "gnts"])
def test_an_experiment_without_a_scaler_is_refused(method):
    experiment: Experiment = pretraining.build(pretraining.config("smoke", method=method))
    with pytest.raises(ValueError, match=f"'{method}' has no variance scaler: expected controls"):
        ScalerModel(Live(experiment))


def test_alphas_are_read_from_a_text():
    controls = make().controls
    assert parse_alphas("0, 0.1; 1e0", controls) == [0.0, 0.1, 1.0]
    for text, message in {
        "0.1": "expected two or more that differ",
        "0.1, 0.1": "expected two or more that differ",
        "0, -1": "alpha=-1.0",
        "0,": "alpha='': expected a number",
        "0, x": "alpha='x'",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_alphas(text, controls)
