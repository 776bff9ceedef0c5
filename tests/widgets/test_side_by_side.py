"""Twins at several alphas: the same start, the same data, and each the run that it would be."""

import pandas as pd
import pytest
from drawn import drawn

from gqc_lab import Live
from gqc_lab.studies import pretraining
from gqc_lab.studies.vgs import training as vgs_training
from gqc_widgets.side_by_side import HERE, SideBySide

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def make(**overrides):
    values = {"steps": 60, "batch_size": 4, "width": 8, "beta": 0.9, "warmup_steps": 5}
    return vgs_training.build(vgs_training.config("smoke", device="cpu", **values | overrides))


def run(experiment, until=None):
    while experiment.microbatch != until and next(experiment, None) is not None:
        pass
    return experiment


def begin(live, alphas, **choices):
    """Press *Run* with ``choices`` in the fields."""
    side = SideBySide(live)
    side.alphas.value = ", ".join(map(str, alphas))
    for name, value in choices.items():
        getattr(side, name).value = value
    side.start()
    return side


def wait(side):
    assert all(runner.wait(600) for runner in side.runners.values())


def rows(experiment, since=0):
    kept = experiment.history.drop(columns=["seconds", "changes", "alpha", "method"])
    return kept.iloc[since:].reset_index(drop=True)


def test_from_the_beginning_each_is_the_run_with_its_alpha():
    experiment = make()
    live = Live(experiment)
    run(experiment, until=10)
    side = begin(live, [0.0, 0.1, 2.0])
    wait(side)
    for alpha in (0.0, 0.1, 2.0):
        twin = side.runners[alpha].experiment
        pd.testing.assert_frame_equal(rows(twin), rows(run(make(alpha=alpha))), check_exact=True)
    assert side.runners[0.0].experiment.is_steered  # and says so
    assert experiment.microbatch == 10
    losses = [drawn(side.panels, f"val_loss {i}")[1][-1] for i in range(3)]
    assert len(set(losses)) == 3
    assert side.progress.value.count("finished, 240 of 240") == 3
    assert f"held-out loss {losses[2]:.4g}" in side.progress.value


def test_from_where_the_run_is_they_share_its_past_and_the_same_alpha_continues_alike():
    experiment = run(make(), until=30)
    side = begin(Live(experiment), [0.1, 1.0], place=HERE)
    wait(side)
    run(experiment)
    same, other = (side.runners[a].experiment for a in (0.1, 1.0))
    pd.testing.assert_frame_equal(rows(same), rows(experiment), check_exact=True)
    pd.testing.assert_frame_equal(rows(other)[:30], rows(experiment)[:30], check_exact=True)
    assert other.changes == [{"microbatch": 31, "name": "alpha", "value": 1.0}]
    assert other.history["factor"][30] < experiment.history["factor"][30]


def test_the_present_controls_are_theirs_too():
    experiment = make()
    experiment.controls.update(lr_scale=0.5, percentile=0.2)
    side = begin(Live(experiment), [0.0, 0.5])
    wait(side)
    assert {r.experiment.controls["lr_scale"] for r in side.runners.values()} == {0.5}
    assert {r.experiment.scaler.percentile for r in side.runners.values()} == {0.2}


def test_another_estimator_starts_at_the_beginning():
    experiment = run(make(), until=20)
    with pytest.raises(ValueError, match=r"estimator='elementwise': .* start at the beginning"):
        begin(Live(experiment), [0.0, 0.1], place=HERE, estimator="elementwise")
    side = begin(Live(experiment), [0.0, 0.1], estimator="elementwise")
    wait(side)
    assert {r.experiment.scaler.estimator for r in side.runners.values()} == {"elementwise"}


def test_stop_ends_all_and_a_new_start_ends_the_old():
    side = begin(Live(make(steps=10**6)), [0.0, 0.1])
    assert side.starts.disabled
    old = list(side.runners.values())
    side.alphas.value = "0, 0.1, 0.5"
    side.start()
    assert all(runner.wait(0) for runner in old)
    side.stop()
    assert side.stops.disabled
    assert [runner.wait(0) for runner in side.runners.values()] == [True] * 3


def test_what_was_planned_for_the_run_is_not_planned_for_its_twins():
    experiment = make()
    experiment.replay([{"microbatch": 20, "name": "alpha", "value": 3.0}])
    side = begin(Live(experiment), [0.0, 0.1])
    wait(side)
    assert (side.runners[0.0].experiment.history["factor"] == 1).all()


def test_an_exception_of_one_is_shown():
    class Broken(vgs_training.Digits):
        def twin(self, estimator=None):
            return Broken(self.config)

        def draw_batch(self):
            raise ValueError("no such digit")

    side = begin(Live(Broken(make().config)), [0.0, 0.1])
    wait(side)
    assert side.progress.value.count("ValueError: no such digit") == 2


def test_text_pretraining_can_be_compared_too():
    config = pretraining.config("smoke", method="vgs", vgs_warmup_steps=2, tokens=8 * 512)
    side = begin(Live(pretraining.build(config)), [0.0, 0.5])
    wait(side)
    assert [r.state for r in side.runners.values()] == ["finished"] * 2


def test_twins_leave_the_checkpoint_of_the_run_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(Live.__init__.__kwdefaults__, "every_seconds", 0.0)
    monkeypatch.setitem(Live.__init__.__kwdefaults__, "folder", tmp_path)
    live = Live(make())
    live.step(10)
    live.wait(60)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert live.checkpoint.name in before
    side = begin(live, [0.7, 0.9])
    wait(side)
    assert [runner.state for runner in side.runners.values()] == ["finished"] * 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
