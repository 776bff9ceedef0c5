"""The norm schedule's view, without a browser: fields, clicks and what the figure shows."""

import pytest

from gqc_lab.loop.norm_schedule import norm_schedule
from gqc_lab.studies import pretraining
from gqc_widgets import LiveRun, NormScheduleEditor


def make(**fields):
    fields = {"tokens": 40 * 512, "start_norm": 0.8, "end_norm": 0.4, **fields}
    return pretraining.build(pretraining.config("smoke", **fields))


def trace(view, key):
    return next(t for t in view.figure.plot.data if t.meta == key)


def shown(view):
    inputs = view.fields.inputs
    return {name for name in inputs if inputs[name] in view.fields.children} - {"norm_curve"}


def test_fields_are_those_of_the_curve():
    view = NormScheduleEditor(make())
    norms = {"start_norm", "end_norm", "norm_warmup_microbatches", "norm_warmup_multiplier"}
    assert shown(view) == norms
    view.fields.inputs["norm_curve"].value = "polynomial"
    assert shown(view) == norms | {"norm_exponent"}
    view.fields.inputs["norm_curve"].value = "constant"
    assert shown(view) == norms - {"end_norm"}
    view.fields.inputs["norm_curve"].value = "points"
    assert shown(view) == {"norm_points"}


def test_an_edit_moves_the_schedule_and_a_bad_one_says_what_is_wrong():
    experiment = make()
    view = NormScheduleEditor(experiment)
    before = list(trace(view, "schedule").y)
    view.fields.inputs["start_norm"].value = ""
    assert "the field is empty" in view.fields.errors["start_norm"].value
    assert list(trace(view, "schedule").y) == before
    view.fields.inputs["start_norm"].value = "0.9"
    assert view.fields.errors["start_norm"].value == ""
    schedule = norm_schedule(experiment.controls)
    assert list(trace(view, "schedule").y) == [
        schedule.threshold(t, 40) for t in trace(view, "schedule").x
    ]
    view.fields.inputs["end_norm"].value = "<1>"
    assert "&lt;1&gt;" in view.fields.errors["end_norm"].value


@pytest.mark.filterwarnings("ignore:10 windows in a row")  # out of reach on purpose
def test_it_follows_a_run_and_draws_what_was_applied_over_the_schedule():
    experiment = make(max_draws=4, start_norm=0.45, end_norm=0.05, norm_warmup=0.0)
    live = LiveRun(experiment)
    view = NormScheduleEditor(live)
    live.runner.start()
    assert live.runner.wait(600)
    history = experiment.history
    applied = trace(view, "gradient_norm_threshold")
    assert list(applied.y) == history["gradient_norm_threshold"].tolist()
    assert list(applied.x) == pytest.approx(history["microbatch"].tolist())
    assert set(trace(view, "max_draws").y) == {4}
    assert len(trace(view, "expected").y) == len(trace(view, "schedule").y)
    forced = experiment.summary()["num_forced"] / experiment.summary()["steps"]
    assert f"<b>{forced:.1%}</b>" in view.notes.value
    view.close()
    assert view._follow not in live.runner.listeners
    assert live.runner.state == "finished"


def test_a_click_draws_a_point_and_a_click_on_it_removes_it():
    experiment = make()
    view = NormScheduleEditor(experiment)
    assert len(trace(view, "clicks").x) == 0
    view.fields.inputs["norm_curve"].value = "points"
    before = experiment.controls["norm_points"]
    grid = trace(view, "clicks")
    assert len(grid.x) > 1000
    click = {"clicks": [["clicks", 0.1 * 40, 1.7]]}
    view.figure._clicked(view.figure, click, [])
    assert (0.1, 1.7) in experiment.controls["norm_points"]
    assert 1.7 in list(trace(view, "points").y)
    view.figure._clicked(view.figure, {"clicks": [["points", 0.1 * 40, 1.7]]}, [])
    assert experiment.controls["norm_points"] == before
    for other in ({"clicks": [["schedule", 0.1 * 40, 1.7]]}, {"clicks": []}, {}):
        view.figure._clicked(view.figure, other, [])
    assert experiment.controls["norm_points"] == before


def test_export_shows_the_parameters():
    view = NormScheduleEditor(make())
    view.button.click()
    assert "start_norm: 0.8" in view.text.value
    assert view.export()["start_norm"] == 0.8


def test_an_experiment_without_a_threshold_is_refused():
    experiment = pretraining.build(pretraining.config("smoke", method="adamw"))
    with pytest.raises(ValueError, match="has no norm schedule"):
        NormScheduleEditor(experiment)


def test_fields_follow_a_control_that_a_cell_has_set():
    experiment = make()
    live = LiveRun(experiment)
    view = NormScheduleEditor(live)
    experiment.controls.update(start_norm=1.5, norm_curve="linear")
    live.runner.step()
    assert live.runner.wait(600)
    assert (view.fields.inputs["start_norm"].value, view.fields.inputs["norm_curve"].value) == (
        "1.5",
        "linear",
    )
    assert list(trace(view, "schedule").y)[-1] == pytest.approx(0.4)
