"""A run that was steered by hand can be kept and repeated without a person."""

import html
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from gqc_lab.loop.checkpoints import load_checkpoint
from gqc_lab.runs.notebook import read_notebook
from gqc_lab.runs.parameters import read_mapping, resolve
from gqc_lab.studies import pretraining
from gqc_lab.studies.vgs import training as vgs_training
from gqc_widgets import Live, LiveRun, NormScheduleEditor, VGSAlphaTuner

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


@pytest.mark.slow
def test_the_printed_command_repeats_it_although_the_notebook_was_saved(monkeypatch, tmp_path):
    """The pair differs then: only its notebook has ``interactive = True``."""
    notebook = tmp_path / "07 copy.ipynb"
    content = json.loads(NOTEBOOK.read_text())
    for cell in content["cells"]:
        source = "".join(cell["source"])
        cell["source"] = source.replace("\ninteractive = False", "\ninteractive = True")
    assert json.dumps(content).count("ninteractive = True") == 1
    notebook.write_text(json.dumps(content))
    notebook.with_suffix(".py").write_text(NOTEBOOK.with_suffix(".py").read_text())
    monkeypatch.setenv("JPY_SESSION_NAME", str(notebook))  # as Jupyter's server sets it
    live = LiveRun(build(PARAMETERS), PARAMETERS | {"interactive": False}, tmp_path / "live")
    live.step(6)
    assert live.wait(600)
    live.experiment.controls["start_norm"] = 1.1
    live.start()
    assert live.wait(600)
    live.view.buttons["save"].click()
    (command,) = re.findall("<code>(gqc .*)</code>", live.view.message.value)
    words = shlex.split(html.unescape(command))
    start = "from gqc_lab.cli import main; main()"
    command = [sys.executable, "-c", start, *words[1:]]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1000)
    assert result.returncode == 0, result.stderr
    (found,) = (tmp_path / "runs").glob("*/history.parquet")
    again, history = pd.read_parquet(found), live.experiment.history
    # Bit for bit only with as many threads of the processor as here, which a batch decides.
    assert again["loss"].tolist() == pytest.approx(history["loss"].tolist(), rel=1e-4)
    assert again["changes"].dropna().tolist() == history["changes"].dropna().tolist()


def test_a_saved_loop_says_how_its_changes_are_repeated(tmp_path):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    live = Live(optimizer, folder=tmp_path)
    for number in live(range(5)):
        live.log(loss=number)
        if number == 2:
            live.experiment.controls["lr"] = 0.3
    live.view.buttons["save"].click()
    (line,) = re.findall(r"<code>live\.replay\((.*)\)</code>", live.view.message.value)
    assert eval(html.unescape(line), {"yaml": yaml, "Path": Path}) == live.changes


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
