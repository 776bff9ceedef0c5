"""The alpha tuner's view, without a browser: fields, sliders, figures, buttons."""

import threading

import pytest

from gqc_lab.studies import pretraining
from gqc_lab.studies.vgs import training as vgs_training
from gqc_widgets import LiveRun, VGSAlphaTuner
from gqc_widgets import alpha_tuner as module
from gqc_widgets.jupyter import Cell
from gqc_widgets.runner import stop_all


def make(**overrides):
    values = {"steps": 60, "batch_size": 4, "width": 8, "beta": 0.9, "warmup_steps": 5}
    return vgs_training.build(vgs_training.config("smoke", device="cpu", **values | overrides))


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    stop_all()
    assert set(threading.enumerate()) == before


def trace(figure, key):
    return next(t for t in figure.plot.data if t.meta == key)


def train(live, count=None):
    live.runner.start() if count is None else live.runner.step(count)
    assert live.runner.wait(600)


def wait(tuner):
    assert all(runner.wait(600) for runner in tuner.side.runners.values())


def test_slider_and_field_are_one_alpha():
    experiment = make()
    tuner = VGSAlphaTuner(experiment)
    tuner.fields.slider.value = 0.5
    assert experiment.controls["alpha"] == 0.5
    assert tuner.fields.inputs["alpha"].value == "0.5"
    tuner.fields.inputs["alpha"].value = "2"
    assert tuner.fields.slider.value == 2
    tuner.fields.inputs["alpha"].value = "0"  # which a logarithm has not
    assert experiment.controls["alpha"] == 0
    assert tuner.fields.slider.value == pytest.approx(1e-3)
    tuner.fields.inputs["alpha"].value = "-1"
    assert "alpha=-1.0" in tuner.fields.errors["alpha"].value
    assert experiment.controls["alpha"] == 0
    tuner.fields.slider.value = 1.0
    assert tuner.fields.errors["alpha"].value == ""


def test_it_follows_a_run_and_draws_variance_and_factor():
    experiment = make()
    live = LiveRun(experiment)
    tuner = VGSAlphaTuner(live)
    train(live)
    history = experiment.history
    for level in ("p10", "p50", "p90"):
        key = f"vgs/stochastic_var_{level}"
        assert list(trace(tuner.figure, key).y) == history[key].tolist()
        assert len(trace(tuner.figure, f"at {level}").y) == len(history)
    assert list(trace(tuner.figure, "factor").y) == history["factor"].tolist()
    assert list(trace(tuner.what_if_figure, "recorded").y) == history["factor"].tolist()
    assert "mean factor" in tuner.note.value
    tuner.close()
    assert tuner._follow not in live.runner.listeners


def test_a_guess_redraws_its_curve_and_steers_nothing():
    experiment = make()
    live = LiveRun(experiment)
    tuner = VGSAlphaTuner(live)
    train(live)
    before = list(trace(tuner.what_if_figure, "what_if").y)
    tuner.guesses.slider.value = 5.0
    assert min(trace(tuner.what_if_figure, "what_if").y) < min(before)
    assert experiment.controls["alpha"] == 0.1
    tuner.guesses.inputs["warmup_steps"].value = "x"
    assert "expected a number" in tuner.guesses.errors["warmup_steps"].value


def test_fields_follow_a_control_that_a_cell_has_set():
    experiment = make()
    live = LiveRun(experiment)
    tuner = VGSAlphaTuner(live)
    experiment.controls.update(alpha=0.7, percentile=0.5)
    train(live, 1)
    assert tuner.fields.slider.value == 0.7
    assert tuner.fields.inputs["percentile"].value == "0.5"


def test_side_by_side_runs_shows_progress_and_can_be_stopped():
    experiment = make(steps=10**5)
    live = LiveRun(experiment)
    tuner = VGSAlphaTuner(live)
    train(live, 20)
    tuner.alphas.value = "0, 0.5"
    tuner.place.value = module.HERE
    tuner.start.click()
    assert not tuner.stop.disabled
    tuner.stop.click()
    wait(tuner)
    assert tuner.stop.disabled
    assert "alpha <b>0</b>: stopped" in tuner.progress.value
    assert "alpha <b>0.5</b>: stopped" in tuner.progress.value
    assert [t.name for t in tuner.side_figure.plot.data if t.showlegend] == ["alpha 0", "alpha 0.5"]
    factors = [list(trace(tuner.side_figure, f"factor {i}").y)[:20] for i in (0, 1)]
    assert factors[0] == factors[1] == experiment.history["factor"][:20].tolist()


def test_side_by_side_to_the_end_and_what_is_wrong_with_the_alphas():
    live = LiveRun(make())
    tuner = VGSAlphaTuner(live)
    tuner.alphas.value = "0.1"
    tuner.start.click()
    assert "expected two or more" in tuner.progress.value
    assert tuner.side.runners == {}
    tuner.alphas.value = "0, 1"
    tuner.start.click()
    wait(tuner)
    assert "finished" in tuner.progress.value
    assert len(trace(tuner.side_figure, "val_loss 1").y) > 3
    tuner.estimator.value, tuner.place.value = "elementwise", module.HERE
    tuner.start.click()
    assert "start at the beginning" in tuner.progress.value
    tuner.place.value = module.BEGINNING
    tuner.start.click()
    wait(tuner)
    assert "finished" in tuner.progress.value


def test_a_cell_that_runs_again_ends_what_ran_side_by_side(monkeypatch):
    turn = {"n": 0}
    monkeypatch.setattr(
        module, "current_cell", lambda: Cell("cell-9", str(turn["n"]), lambda: None)
    )
    first = VGSAlphaTuner(make(steps=10**6))
    first.start.click()
    assert first.side.is_running
    turn["n"] = 1
    VGSAlphaTuner(make())
    assert not first.side.is_running


def test_export_shows_the_parameters():
    tuner = VGSAlphaTuner(make())
    tuner.button.click()
    assert "alpha: 0.1" in tuner.text.value
    assert tuner.export()["alpha"] == 0.1


def test_an_experiment_without_a_scaler_is_refused():
    experiment = pretraining.build(pretraining.config("smoke", method="adamw"))
    with pytest.raises(ValueError, match="has no variance scaler"):
        VGSAlphaTuner(experiment)
