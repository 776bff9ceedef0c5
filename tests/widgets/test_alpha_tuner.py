"""The alpha tuner's view, without a browser: fields, sliders, figures, buttons."""

import pytest
from drawn import drawn

from gqc_lab.studies import pretraining
from gqc_lab.studies.vgs import training as vgs_training
from gqc_widgets import LiveRun, VGSAlphaTuner
from gqc_widgets import side_by_side as module

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def make(**overrides):
    values = {"steps": 60, "batch_size": 4, "width": 8, "beta": 0.9, "warmup_steps": 5}
    return vgs_training.build(vgs_training.config("smoke", device="cpu", **values | overrides))


def y(panels, key):
    return drawn(panels, key)[1]


def train(live, count=None):
    live.start() if count is None else live.step(count)
    assert live.wait(600)


def wait(tuner):
    assert all(runner.wait(600) for runner in tuner.side.runners.values())


def test_slider_and_field_are_one_alpha_and_what_was_typed_stays():
    experiment = make()
    fields = VGSAlphaTuner(experiment).fields
    fields._hear({"slide": ["alpha", 150]})
    assert experiment.controls["alpha"] == 1.0
    assert fields.values["alpha"]["text"] == "1"
    fields._hear({"edit": ["alpha", "0.3"]})  # which is no notch of the slider
    assert experiment.controls["alpha"] == 0.3
    assert fields.values["alpha"]["text"] == "0.3"
    assert fields.values["alpha"]["at"] == 124
    fields._hear({"edit": ["alpha", "0"]})  # which a logarithm has not
    assert experiment.controls["alpha"] == 0
    assert fields.values["alpha"]["at"] == 0
    fields._hear({"edit": ["alpha", "-1"]})
    assert "alpha=-1.0" in fields.values["alpha"]["error"]
    assert experiment.controls["alpha"] == 0
    fields._hear({"slide": ["alpha", 100]})
    assert fields.values["alpha"]["error"] == ""
    fields._hear({"slide": ["percentile", 50]})  # even between its bounds
    assert experiment.controls["percentile"] == 0.25


def test_it_follows_a_run_and_draws_variance_and_factor():
    experiment = make()
    live = LiveRun(experiment)
    tuner = VGSAlphaTuner(live)
    train(live)
    history = experiment.history
    for level in ("p10", "p50", "p90"):
        key = f"vgs/stochastic_var_{level}"
        assert y(tuner.panels, key) == history[key].tolist()
        assert len(y(tuner.panels, f"at {level}")) == len(history)
    assert y(tuner.panels, "factor") == history["factor"].tolist()
    assert y(tuner.what_if_panels, "recorded") == history["factor"].tolist()
    assert "mean factor" in tuner.note.value
    tuner.close()
    assert tuner._hear not in live.listeners


def test_a_guess_redraws_its_curve_and_steers_nothing():
    experiment = make()
    live = LiveRun(experiment)
    tuner = VGSAlphaTuner(live)
    train(live)
    before = y(tuner.what_if_panels, "what_if")
    tuner.guesses.edit("alpha", 5.0)
    assert min(y(tuner.what_if_panels, "what_if")) < min(before)
    assert experiment.controls["alpha"] == 0.1
    tuner.guesses.edit("warmup_steps", "x")
    assert (
        "warmup_steps='x': expected an integer of at least 0"
        in tuner.guesses.messages["warmup_steps"]
    )


def test_fields_follow_a_control_that_a_cell_has_set():
    experiment = make()
    live = LiveRun(experiment)
    tuner = VGSAlphaTuner(live)
    experiment.controls.update(alpha=0.7, percentile=0.5)
    train(live, 1)
    assert tuner.fields.values["alpha"]["text"] == "0.7"
    assert tuner.fields.values["percentile"]["text"] == "0.5"


def test_side_by_side_runs_shows_progress_and_can_be_stopped():
    experiment = make(steps=10**5)
    live = LiveRun(experiment)
    tuner = VGSAlphaTuner(live)
    train(live, 20)
    tuner.side.alphas.value = "0, 0.5"
    tuner.side.place.value = module.HERE
    tuner.side.starts.click()
    assert not tuner.side.stops.disabled
    tuner.side.stops.click()
    wait(tuner)
    assert tuner.side.stops.disabled
    assert "alpha <b>0</b>: stopped" in tuner.side.progress.value
    assert "alpha <b>0.5</b>: stopped" in tuner.side.progress.value
    named = [t["name"] for t in tuner.side.panels.panels[0]["traces"] if t["name"]]
    assert named == ["alpha 0", "alpha 0.5"]
    factors = [y(tuner.side.panels, f"factor {i}")[:20] for i in (0, 1)]
    assert factors[0] == factors[1] == experiment.history["factor"][:20].tolist()


def test_side_by_side_to_the_end_and_what_is_wrong_with_the_alphas():
    live = LiveRun(make())
    tuner = VGSAlphaTuner(live)
    tuner.side.alphas.value = "0.1"
    tuner.side.starts.click()
    assert "expected two or more" in tuner.side.progress.value
    assert tuner.side.runners == {}
    tuner.side.alphas.value = "0, 1"
    tuner.side.starts.click()
    wait(tuner)
    assert "finished" in tuner.side.progress.value
    assert len(y(tuner.side.panels, "val_loss 1")) > 3
    tuner.side.estimator.value, tuner.side.place.value = "elementwise", module.HERE
    tuner.side.starts.click()
    assert "start at the beginning" in tuner.side.progress.value
    tuner.side.place.value = module.BEGINNING
    tuner.side.starts.click()
    wait(tuner)
    assert "finished" in tuner.side.progress.value


def test_an_editor_says_that_its_run_was_replaced():
    experiment = make()
    tuner = VGSAlphaTuner(LiveRun(experiment))
    assert tuner.banner.value == ""
    LiveRun(experiment)
    assert "replaced; run this cell again" in tuner.banner.value


def test_export_shows_the_parameters():
    tuner = VGSAlphaTuner(make())
    tuner.button.click()
    assert "alpha: 0.1" in tuner.text.value
    tuner.fields.edit("alpha", "0.7")
    assert "alpha: 0.7" in tuner.text.value
    assert tuner.export()["alpha"] == 0.7


def test_an_experiment_without_a_scaler_is_refused():
    experiment = pretraining.build(pretraining.config("smoke", method="adamw"))
    with pytest.raises(ValueError, match="has no variance scaler"):
        VGSAlphaTuner(experiment)
