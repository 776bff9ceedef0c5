"""The plan of a norm threshold: its formula, against the core's schedule and by hand."""

import math

import pytest
import torch

from gqc.schedules import get_norm_threshold_cosine_annealing_with_warmup
from gqc.wrappers import OptimizerWrapperGNTS
from gqc_lab.loop.controls import CURVES, Controls, NormSchedule, norm_controls, norm_schedule
from gqc_lab.loop.settings import Setting, read_pairs
from gqc_lab.studies import pretraining


@pytest.mark.parametrize(("warmup", "total"), [(0, 20), (7, 20), (20, 20)])
def test_the_cosine_is_bitwise_that_of_the_core(warmup, total):
    wrapper = OptimizerWrapperGNTS(torch.optim.SGD([torch.zeros(1)], lr=0.1))
    core = get_norm_threshold_cosine_annealing_with_warmup(
        wrapper, warmup, total, start_norm=0.7, end_norm=0.3, warmup_multiplier=4.0
    )
    plan = NormSchedule(0.7, 0.3, 4.0, warmup)
    assert [plan.threshold(t, total) for t in range(25)] == [core.fn(t) for t in range(25)]


@pytest.mark.parametrize(
    ("curve", "halfway"), [("linear", 2.0), ("polynomial", 1.25), ("constant", 3.0)]
)
def test_curves_at_their_start_halfway_and_past_their_end(curve, halfway):
    plan = NormSchedule(3.0, 1.0, 2.0, 10, curve, norm_exponent=3.0)
    end = 3.0 if curve == "constant" else 1.0
    found = [plan.threshold(t, 50) for t in (0, 5, 10, 30, 50, 60)]
    assert found == pytest.approx([6.0, 4.5, 3.0, halfway, end, end], rel=1e-15)


def test_points_are_joined_and_may_rise():
    plan = NormSchedule(1.0, 2.0, norm_curve="points", norm_points=((0.0, 1.0), (0.5, 3.0)))
    assert [plan.threshold(t, 100) for t in (0, 25, 50, 99)] == [1.0, 2.0, 3.0, 3.0]


def test_values_that_do_not_fit_are_refused_and_the_last_good_ones_stay():
    controls = Controls(norm_controls(NormSchedule(0.7, 0.3), 100), check_together=norm_schedule)
    before = dict(controls)
    for bad, message in [
        ({"end_norm": 0.8}, "end_norm=0.8: expected at most start_norm=0.7"),
        ({"end_norm": math.nan}, "end_norm=nan: expected a number"),
        ({"norm_curve": "points"}, "norm_points=.*at least one"),
        ({"norm_curve": "cosin"}, "did you mean 'cosine'"),
        (
            {"norm_warmup_microbatches": 101},
            "an integer of at least 0 and at most 100",
        ),
        ({"norm_exponent": 0}, "norm_exponent=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            controls.update(bad)
    assert dict(controls) == before
    controls.update(norm_curve="points", norm_points=[[0, 0.5], [1, 0.9]])
    assert controls["norm_points"] == ((0.0, 0.5), (1.0, 0.9))


@pytest.mark.parametrize(
    "bad",
    ["ab", 3, [1, 2], ["ab"], [(0, 1, 2)], [(0, -1)], [(0, math.nan)], [(1.5, 1)],
     [(0.5, 1), (0.5, 2)], [(0.5, 1), (0.2, 2)]],
)  # fmt: skip
def test_points_that_are_no_line_are_refused(bad):
    with pytest.raises(ValueError, match="p"):
        read_pairs("p", bad)


def test_a_choice_is_one_of_its_options():
    choice = Setting("a", choices=("a", "b"))
    assert choice.check("c", "b") == "b"
    with pytest.raises(ValueError, match="expected one of a, b"):
        choice.check("c", None)


@pytest.mark.parametrize("curve", CURVES)
def test_a_run_is_under_the_threshold_that_its_plan_says(curve):
    config = pretraining.config(
        "smoke", tokens=20 * 512, norm_curve=curve, norm_points=[(0.1, 2.0), (0.6, 0.5)]
    )
    experiment = pretraining.build(config)
    plan = norm_schedule(experiment.controls)
    records = list(experiment)
    found = [r["gradient_norm_threshold"] for r in records]
    assert found == [plan.threshold(t, 20) for t in range(20)]


def test_a_curve_changed_on_the_way_counts_from_then_on_and_replays_exactly():
    config = pretraining.config("smoke", tokens=30 * 512)
    steered = pretraining.build(config)
    before = norm_schedule(steered.controls)
    for record in steered:
        if record["microbatch"] == 12:
            steered.controls.update(norm_curve="points", norm_points=[(0, 1.0), (1, 0.5)])
    after = norm_schedule(steered.controls)
    thresholds = steered.history["gradient_norm_threshold"].tolist()
    plan = [(before if t < 12 else after).threshold(t, 30) for t in range(30)]
    assert thresholds == plan
    replayed = pretraining.build(config)
    replayed.replay(steered.changes)
    list(replayed)
    columns = [c for c in steered.history if c != "seconds"]
    assert replayed.history[columns].equals(steered.history[columns])


def test_a_cut_after_points_were_drawn_resumes_to_the_same_end(tmp_path):
    config = pretraining.config("smoke", tokens=16 * 512)
    uncut, cut = pretraining.build(config), pretraining.build(config)
    for experiment in (uncut, cut):
        for _ in range(5):
            next(experiment)
        experiment.controls.update(norm_curve="points", norm_points=[(0, 1.0), (1, 0.5)])
        next(experiment)
    torch.save(cut.state_dict(), tmp_path / "state")
    resumed = pretraining.build(config)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert [r["loss"] for r in resumed] == [r["loss"] for r in uncut]
