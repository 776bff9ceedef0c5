"""What the norm schedule editor shows: its fields, what is wrong with them, expected draws."""

import math
import re

import pytest
import yaml

from gqc_lab import Live
from gqc_lab.loop.controls import CURVES, norm_schedule
from gqc_lab.studies import pretraining
from gqc_widgets import NormScheduleEditor
from gqc_widgets.schedule_editor import NormScheduleModel

TOTAL = 40


def model_of(experiment, statistics=()):
    model = NormScheduleModel(Live(experiment))
    model.live.statistics = dict(statistics)
    return model


def make(**fields):
    fields = {"tokens": TOTAL * 512, "start_norm": 0.8, "end_norm": 0.4, **fields}
    return pretraining.build(pretraining.config("smoke", **fields))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("start_norm", "", "start_norm='': expected a number of at least 0"),
        ("start_norm", "fast", "start_norm='fast': expected a number"),
        ("start_norm", "-1", "start_norm=-1.0: expected a number of at least 0"),
        ("start_norm", "nan", "start_norm=nan"),
        ("end_norm", "0.9", "end_norm=0.9: expected at most start_norm=0.8"),
        ("norm_warmup_microbatches", "41", "an integer of at least 0 and at most 40"),
        ("norm_warmup_microbatches", "2.5", "an integer"),
        ("norm_points", "0 1, 0.5", "expected pairs"),
        ("norm_points", " ", "the field is empty"),
        ("norm_points", "0 1, 2 1", "share=2.0: expected a number of at least 0 and at most 1"),
    ],
)
def test_a_bad_field_says_so_and_training_keeps_the_last_good_plan(name, content, message):
    experiment = make()
    fields = NormScheduleEditor(experiment).fields
    before = dict(experiment.controls)
    fields.edit(name, content)
    assert list(fields.messages) == [name]
    with pytest.raises(ValueError, match=message):
        raise ValueError(fields.messages[name])
    assert dict(experiment.controls) == before
    assert fields.values[name]["text"] == content  # what was typed stays, to be corrected
    fields.edit(name, before[name])
    assert fields.messages == {}


def test_two_fields_that_fit_only_together_are_set_together():
    experiment = make()
    fields = NormScheduleEditor(experiment).fields
    fields.edit("start_norm", "0.3")
    assert list(fields.messages) == ["start_norm"]
    assert experiment.controls["start_norm"] == 0.8
    fields.edit("end_norm", "0.2")
    assert fields.messages == {}
    assert (experiment.controls["start_norm"], experiment.controls["end_norm"]) == (0.3, 0.2)


def test_a_control_set_elsewhere_is_not_set_back():
    experiment = make()
    fields = NormScheduleEditor(experiment).fields
    experiment.controls["start_norm"] = 0.9
    fields.edit("end_norm", "0.5")
    assert experiment.controls["start_norm"] == 0.9
    assert fields.values["start_norm"]["text"] == "0.9"


def test_an_edit_counts_from_the_next_microbatch_and_leaves_the_past():
    experiment = make()
    editor = NormScheduleEditor(experiment)
    before = editor.model.schedule
    for _ in range(10):
        next(experiment)
    editor.fields.edit("start_norm", "3")
    after = editor.model.schedule
    record = next(experiment)
    assert record["gradient_norm_threshold"] == after.threshold(10, TOTAL)
    thresholds = experiment.history["gradient_norm_threshold"].tolist()
    assert thresholds[:10] == [before.threshold(t, TOTAL) for t in range(10)]


@pytest.mark.parametrize("curve", CURVES)
def test_the_drawn_plan_is_what_the_run_applies(curve):
    experiment = make(norm_curve=curve, norm_points=[(0.0, 2.0), (0.3, 0.7), (1.0, 0.9)])
    model = model_of(experiment)
    steps, norms = model.curve()
    assert (steps[0], steps[-1]) == (0, TOTAL)
    applied = [record["gradient_norm_threshold"] for record in experiment]
    drawn = dict(zip(steps, norms, strict=True))  # 241 points: each microbatch is among them
    assert [drawn[t] for t in range(TOTAL)] == pytest.approx(applied, rel=1e-12)


def test_points_drawn_by_hand_begin_as_the_curve_and_can_be_put_and_removed():
    experiment = make()
    editor = NormScheduleEditor(experiment)
    fields, model, curve = editor.fields, editor.model, editor.model.schedule
    fields.edit("norm_curve", "points")
    assert fields.messages == {}
    points = experiment.controls["norm_points"]
    assert len(points) >= 7
    assert [y for _, y in points] == pytest.approx(
        [curve.threshold(x * TOTAL, TOTAL) for x, _ in points], rel=1e-3
    )
    fields.edit("norm_points", model.points(None, (0.5, 1.5)))  # moves one that is there already
    fields.edit("norm_points", model.points(None, (0.503, 1.6)))
    assert dict(experiment.controls["norm_points"])[0.5] == 1.6
    before = len(experiment.controls["norm_points"])
    fields.edit("norm_points", model.points(0.501, None))
    assert len(experiment.controls["norm_points"]) == before - 1
    for share, _ in experiment.controls["norm_points"]:
        fields.edit("norm_points", model.points(share, None))
    assert len(experiment.controls["norm_points"]) == 1
    fields.edit("norm_points", fields.values["norm_points"]["text"])
    assert fields.messages == {}


def test_expected_draws_are_those_of_the_formula():
    model = model_of(make(max_draws=10), {"signal_sq": 0.25, "noise_trace": 0.9})
    expected = [
        max(0.9 / (tau**2 - 0.25), 1.0) if tau**2 > 0.25 else None for tau in model.curve()[1]
    ]
    found = model.expected_draws()
    assert [n is None for n in found] == [n is None for n in expected]
    assert [n or 0 for n in found] == pytest.approx([n or 0 for n in expected], rel=1e-12)
    assert None in expected  # the plan ends at 0.4, below a norm of 0.5
    unknown = {"signal_sq": None, "noise_trace": None}
    for statistics in (unknown, {"signal_sq": 0.1, "noise_trace": -0.1}, {}):
        model.live.statistics = statistics
        assert model.expected_draws() is None
    assert model.notes() == ["expected draws: not known before a step takes two draws"]


def test_a_threshold_out_of_reach_is_warned_of_with_its_share_of_what_is_left():
    experiment = make(norm_warmup=0.0, max_draws=10)
    model = model_of(experiment, statistics := {"signal_sq": 0.25, "noise_trace": 0.9})
    steps, norms = model.curve()
    bad = [t for t, tau in zip(steps, norms, strict=True) if tau**2 <= 0.25 + 0.09]
    warning = model.warning()
    assert f"out of reach in {len(bad) / len(steps):.0%} of what is left" in warning
    assert f"microbatch {bad[0]:,.0f}:" in warning
    assert "forced at 10 draws (norm without noise about 0.5)" in warning
    for harmless in ({"signal_sq": 0.01, "noise_trace": 1e-4}, {}):
        model.live.statistics = harmless
        assert model.warning() is None
    model.live.statistics = statistics
    experiment.controls["end_norm"] = 0.8
    assert model.warning() is None


@pytest.mark.filterwarnings("ignore:10 windows in a row")  # out of reach on purpose
def test_the_share_of_forced_steps():
    assert len(model_of(make(), {"steps": 0, "num_forced": 0}).notes()) == 1
    model = model_of(make(), {"steps": 8, "num_forced": 2})
    assert model.notes()[1] == "steps forced by max_draws: <b>25.0%</b>"
    experiment = make(start_norm=1e-6, end_norm=0.0, norm_warmup=0.0, max_draws=2)
    list(experiment)
    assert "<b>100.0%</b>" in model_of(experiment, experiment.wrapper.statistics()).notes()[1]


def test_what_was_tuned_by_hand_is_exported_as_parameters_that_make_the_same_plan():
    experiment = make()
    editor = NormScheduleEditor(experiment)
    for name, content in {
        "start_norm": "1.5",
        "end_norm": "0.25",
        "norm_warmup_microbatches": "7",
        "norm_warmup_multiplier": "3",
        "norm_exponent": "2",
        "norm_curve": "points",
    }.items():
        editor.fields.edit(name, content)
    editor.fields.edit("norm_points", editor.model.points(None, (0.5, 0.9)))
    editor.button.click()
    parameters = yaml.safe_load(re.sub(r"<[^>]*>", "", editor.text.value))
    assert parameters == editor.export()
    again = make(**parameters)
    assert norm_schedule(again.controls) == editor.model.schedule


def test_an_experiment_without_a_norm_schedule_is_refused():
    experiment = pretraining.build(pretraining.config("smoke", method="adamw"))
    with pytest.raises(ValueError, match="'adamw' has no norm schedule: expected controls start_"):
        model_of(experiment)
    assert math.isfinite(experiment.controls["lr_scale"])
