"""A run that was steered by hand can be kept and repeated without a person."""

import json
from pathlib import Path

import pandas as pd
import pytest

from gqc_lab.loop.track import load_checkpoint
from gqc_lab.runs.notebook import read_notebook
from gqc_lab.runs.parameters import read_mapping, resolve
from gqc_lab.studies import pretraining
from gqc_lab.studies.vgs import training as vgs_training
from gqc_widgets import LiveRun, NormScheduleEditor, VGSAlphaTuner

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "07_norm_schedule_live.ipynb"
PARAMETERS = {"scale": "smoke", "seed": 3, "tokens": 24 * 512, "start_norm": 0.8}


def build(parameters):
    rest = {name: value for name, value in parameters.items() if name not in ("changes",)}
    return pretraining.build(pretraining.config(method="gnts", **rest))


@pytest.fixture
def saved(tmp_path):
    """A run that was steered by the editor, saved on the way and at its end."""
    experiment = build(PARAMETERS)
    live = LiveRun(experiment, parameters=PARAMETERS, folder=tmp_path / "live")
    editor = NormScheduleEditor(live)
    live.step(6)
    assert live.wait(600)
    editor.fields.edit("start_norm", "1.1")
    editor.fields.edit("norm_curve", "points")
    live.step(6)
    assert live.wait(600)
    live.view.buttons["save"].click()
    editor.fields.edit("norm_points", "0 2, 0.7 0.9, 1 0.4")
    live.view.buttons["start"].click()
    assert live.wait(600)
    live.view.buttons["save"].click()
    return experiment, sorted((tmp_path / "live").iterdir())


def test_it_says_that_it_was_steered_and_when(saved):
    experiment, (half, whole) = saved
    result = json.loads((whole / "result.json").read_text())
    assert result["results"][0]["is_steered"] is True
    assert [(c["microbatch"], c["name"]) for c in result["changes"]] == [
        (7, "start_norm"), (7, "norm_curve"), (7, "norm_points"), (13, "norm_points"),
    ]  # fmt: skip
    assert len(pd.read_parquet(half / "history.parquet")) == 12
    assert len(pd.read_parquet(whole / "history.parquet")) == 24
    steered = experiment.history["changes"].notna()
    assert experiment.history.loc[steered, "microbatch"].tolist() == [7, 13]


def test_its_parameters_repeat_it_bit_by_bit(saved):
    _, places = saved
    for place in places:
        parameters = read_mapping(place / "parameters.yaml")
        again = build(parameters)
        again.replay(parameters["changes"])
        kept = pd.read_parquet(place / "history.parquet")
        list(again)
        columns = [c for c in kept if c not in ("seconds", "val_loss")]
        found = again.history[columns].iloc[: len(kept)]
        pd.testing.assert_frame_equal(found, kept[columns], check_dtype=False, check_exact=True)


def test_the_notebook_takes_them(saved):
    _, (_, whole) = saved
    given = read_mapping(whole / "parameters.yaml")
    values = resolve(read_notebook(NOTEBOOK).declared, given)
    assert values["changes"] == given["changes"]
    assert values["interactive"] is False


def test_it_can_be_resumed(saved):
    experiment, (half, _) = saved
    again = build(PARAMETERS)
    (checkpoint,) = half.glob("*.ckpt")
    assert load_checkpoint(again, checkpoint)
    again.controls.update(norm_points=[(0, 2), (0.7, 0.9), (1, 0.4)])
    list(again)
    assert again.history["loss"].tolist() == experiment.history["loss"].tolist()


def test_a_save_while_it_trains_lets_it_train_on(tmp_path):
    experiment = build(PARAMETERS | {"tokens": 80 * 512})
    live = LiveRun(experiment, parameters=PARAMETERS, folder=tmp_path)
    live.start()
    live.view.buttons["save"].click()
    assert "saved to" in live.view.message.value
    assert live.wait(600)
    assert live.state == "finished"


def test_a_steered_scaler_is_saved_as_parameters_of_its_notebook_that_repeat_it(tmp_path):
    parameters = {"scale": "smoke", "task": "values", "optimizer": "sgd", "seed": 3, "steps": 30}
    parameters |= {"alpha": 0.1, "beta": 0.9, "warmup_steps": 5, "variance_cap": None}
    experiment = vgs_training.build(vgs_training.config(**parameters))
    live = LiveRun(experiment, parameters=parameters, folder=tmp_path)
    tuner = VGSAlphaTuner(live)
    live.step(12)
    assert live.wait(600)
    tuner.fields.edit("alpha", 0.8)
    tuner.fields.edit("percentile", "0.5")
    live.view.buttons["start"].click()
    assert live.wait(600)
    live.view.buttons["save"].click()
    (place,) = tmp_path.iterdir()
    given = read_mapping(place / "parameters.yaml")
    values = resolve(read_notebook(NOTEBOOK.with_name("08_vgs_alpha_live.ipynb")).declared, given)
    assert [c["name"] for c in values["changes"]] == ["alpha", "percentile"]
    assert {name: values[name] for name in parameters} == parameters
    changes = given.pop("changes")
    again = vgs_training.build(vgs_training.config(**given))
    again.replay(changes)
    list(again)
    assert again.history["loss"].tolist() == experiment.history["loss"].tolist()
