"""The norm schedule's view, without a browser: fields, clicks and what the figure shows."""

import pytest
from drawn import drawn

from gqc_lab.loop.controls import norm_schedule
from gqc_lab.studies import pretraining
from gqc_widgets import LiveRun, NormScheduleEditor


def make(**fields):
    fields = {"tokens": 40 * 512, "start_norm": 0.8, "end_norm": 0.4, **fields}
    return pretraining.build(pretraining.config("smoke", **fields))


def points(view, key):
    return drawn(view.panels, key)


def shown(view):
    return set(view.fields.shown) - {"norm_curve"}


def test_fields_are_those_of_the_curve():
    view = NormScheduleEditor(make())
    norms = {"start_norm", "end_norm", "norm_warmup_microbatches", "norm_warmup_multiplier"}
    assert shown(view) == norms
    view.fields.edit("norm_curve", "polynomial")
    assert shown(view) == norms | {"norm_exponent"}
    view.fields.edit("norm_curve", "constant")
    assert shown(view) == norms - {"end_norm"}
    view.fields.edit("norm_curve", "points")
    assert shown(view) == {"norm_points"}


def test_an_edit_moves_the_schedule_and_a_bad_one_says_what_is_wrong():
    experiment = make()
    view = NormScheduleEditor(experiment)
    before = points(view, "schedule")[1]
    view.fields.edit("start_norm", "")
    assert (
        "start_norm='': expected a number of at least 0"
        in view.fields.values["start_norm"]["error"]
    )
    assert points(view, "schedule")[1] == before
    view.fields.edit("start_norm", "0.9")
    assert view.fields.values["start_norm"]["error"] == ""
    schedule = norm_schedule(experiment.controls)
    assert points(view, "schedule")[1] == [
        schedule.threshold(t, 40) for t in points(view, "schedule")[0]
    ]
    view.fields.edit("end_norm", "<1>")
    assert "<1>" in view.fields.values["end_norm"]["error"]


@pytest.mark.filterwarnings("ignore:10 windows in a row")  # out of reach on purpose
def test_it_follows_a_run_and_draws_what_was_applied_over_the_schedule():
    experiment = make(max_draws=4, start_norm=0.45, end_norm=0.05, norm_warmup=0.0)
    live = LiveRun(experiment)
    view = NormScheduleEditor(live)
    live.start()
    assert live.wait(600)
    history = experiment.history
    x, y = points(view, "gradient_norm_threshold")
    assert y == history["gradient_norm_threshold"].tolist()
    assert x == pytest.approx(history["microbatch"].tolist())
    assert set(points(view, "max_draws")[1]) == {4}
    assert len(points(view, "expected")[1]) == len(points(view, "schedule")[1])
    forced = experiment.summary()["num_forced"] / experiment.summary()["steps"]
    assert f"<b>{forced:.1%}</b>" in view.notes.value
    view.close()
    assert view._hear not in live.listeners
    assert live.state == "finished"


def test_points_are_put_moved_and_taken_away():
    experiment = make()
    view = NormScheduleEditor(experiment)
    view._hear_click({"old": None, "new": [4, 1.7]})  # which no other curve takes
    assert experiment.controls["norm_curve"] == "cosine"
    assert experiment.controls["norm_points"] == ()
    view.fields.edit("norm_curve", "points")
    before = experiment.controls["norm_points"]
    view._hear_click({"old": None, "new": [4, 1.7]})
    assert (0.1, 1.7) in experiment.controls["norm_points"]
    assert 1.7 in points(view, "points")[1]
    view._hear_click({"old": 4, "new": [6, 1.23456]})
    assert (0.15, 1.235) in experiment.controls["norm_points"]
    assert len(experiment.controls["norm_points"]) == len(before) + 1
    view._hear_click({"old": 6, "new": None})
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
    live.step()
    assert live.wait(600)
    shown = [view.fields.values[name]["text"] for name in ("start_norm", "norm_curve")]
    assert shown == ["1.5", "linear"]
    assert points(view, "schedule")[1][-1] == pytest.approx(0.4)
