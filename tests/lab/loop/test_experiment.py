"""The generic experiment: records, history, controls, and resume that is exact to the bit."""

import copy
import io
import json
import random
import threading
from dataclasses import dataclass
from functools import cache

import pandas as pd
import pytest
import torch
from same_runs import resume, run, with_cuts

from gqc.wrappers import OptimizerWrapperGNTS
from gqc_lab.loop.controls import Controls
from gqc_lab.loop.experiment import Experiment
from gqc_lab.loop.placement import find_device, find_dtype, make_generator
from gqc_lab.loop.settings import Setting


@dataclass(frozen=True)
class LineConfig:
    seed: int = 0
    total: int = 40
    lr: float = 0.05


class Line(Experiment):
    """Fit y = 2x + noise, as small as an experiment can be: what a new one has to write."""

    unit = "samples"
    evaluated = ("error",)

    def __init__(self, config):
        self.model = torch.nn.Linear(3, 1, dtype=torch.float64)
        with torch.no_grad():
            for p in self.model.parameters():
                p.normal_(generator=make_generator(config.seed, "weights"))
        adam = torch.optim.Adam(self.model.parameters(), lr=config.lr)
        self.wrapper = OptimizerWrapperGNTS(adam, gradient_norm_threshold=1.0, max_draws=5)
        super().__init__(
            config,
            label="line",
            total=config.total,
            parts={"model": self.model, "optimizer": self.wrapper},
            generators={"data": make_generator(config.seed, "data")},
            controls=Controls({"lr_scale": Setting(1.0, low=0), "noise": Setting(0.5, low=0)}),
            constants={"seed": config.seed},
            data_hash="line",
        )

    def set_hyperparameters(self):
        for group in self.wrapper.param_groups:
            group["lr"] = self.config.lr * self.controls.applied["lr_scale"]

    def draw_batch(self):
        generator = self.generators["data"]
        x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        noise = torch.randn(4, 1, generator=generator, dtype=torch.float64)
        return x, 2 * x.sum(1, keepdim=True) + self.controls.applied["noise"] * noise

    def compute_loss(self, batch):
        return torch.nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def amount(self, batch):
        return 1

    def measure(self, batch, stepped):
        return {"lr": self.wrapper.param_groups[0]["lr"], "draws": self.wrapper.num_draws}

    def is_evaluation_due(self):
        return self.done % 8 == 0

    def evaluate(self):
        return {"error": float((self.model.weight.detach() - 2).norm())}


def saved(experiment):
    """The state as another process would get it."""
    file = io.BytesIO()
    torch.save(experiment.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@cache  # every cut is compared with the same run
def uncut_and_cuts():
    return with_cuts(lambda: Line(LineConfig()), range(41))


def assert_same_run(a, b):
    left, right = (e.history.drop(columns="seconds") for e in (a, b))
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert a.changes == b.changes


def test_records_count_and_end():
    experiment = Line(LineConfig())
    records = list(experiment)
    assert [r["microbatch"] for r in records] == list(range(1, 41))
    assert experiment.done == experiment.total == 40
    assert list(experiment) == []
    assert [r["microbatch"] for r in records if r["error"] is not None] == [8, 16, 24, 32, 40]
    seconds = [r["seconds"] for r in records]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert records[-1]["error"] < records[7]["error"]


def test_history_is_tidy_and_a_copy():
    experiment = Line(LineConfig(seed=3))
    assert list(experiment.history.columns) == ["seed"]
    run(experiment, until=10)
    history = experiment.history
    assert len(history) == 10
    assert list(history.columns[:4]) == ["seed", "microbatch", "samples", "seconds"]
    assert (history["seed"] == 3).all()
    assert history["stepped"].dtype == bool
    assert history["error"].dtype == float
    assert history["error"].notna().tolist() == [i == 7 for i in range(10)]
    history.loc[:, "loss"] = 0.0
    assert (experiment.history["loss"] > 0).all()


def test_a_column_that_is_always_empty_is_still_a_number_column():
    experiment = run(Line(LineConfig()), until=3)
    steered = steer(Line(LineConfig()))
    assert experiment.history["changes"].dtype == steered.history["changes"].dtype
    assert experiment.history["error"].dtype == float
    assert experiment.history["error"].isna().all()


def test_nothing_touches_the_global_random_stream_or_prints(capsys):
    Line(LineConfig())  # torch.nn.Linear of this test's own experiment draws when it is built
    experiment = Line(LineConfig())
    before = torch.get_rng_state()
    run(experiment)
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("cut", range(41))
def test_a_cut_run_is_the_uncut_run(cut):
    uncut, files = uncut_and_cuts()
    assert_same_run(resume(Line(LineConfig()), files[cut]), uncut)


class Noisy(Line):
    """As a model with dropout does, and augmentations: they draw from the global generators."""

    def __init__(self, config):
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        super().__init__(config)

    def compute_loss(self, batch):
        kept = torch.nn.functional.dropout(batch[0], 0.5)
        return super().compute_loss((kept + random.random(), batch[1]))


@pytest.mark.parametrize("cut", [0, 3, 12, 29])
def test_a_cut_run_with_dropout_is_the_uncut_run(cut):
    """The masks of a resumed run were those of its beginning."""
    config = LineConfig(total=40, lr=0.01)
    first = run(Noisy(config), until=cut)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    uncut = run(first)
    assert_same_run(resume(Noisy(config), file), uncut)


def test_the_cuts_meet_open_windows_of_several_draws():
    draws = run(Line(LineConfig())).history["draws"]
    assert {0, 1, 2, 3} <= set(draws)


@pytest.mark.parametrize("before", [0, 7, 33])
@pytest.mark.parametrize("cut", [0, 3, 12, 29])
def test_loading_replaces_whatever_was_there(before, cut):
    uncut, files = uncut_and_cuts()
    used = run(Line(LineConfig()), until=before)
    used.controls["lr_scale"] = 3.0
    assert_same_run(resume(used, files[cut]), uncut)


def steer(experiment):
    for microbatch, changes in {0: {"noise": 1.0}, 9: {"lr_scale": 2, "noise": 0}, 21: {}}.items():
        run(experiment, until=microbatch)
        experiment.controls.update(changes)
    return run(experiment)


def test_a_change_is_applied_at_the_next_microbatch_and_recorded():
    experiment = steer(Line(LineConfig()))
    assert experiment.changes == [
        {"microbatch": 1, "name": "noise", "value": 1.0},
        {"microbatch": 10, "name": "lr_scale", "value": 2.0},
        {"microbatch": 10, "name": "noise", "value": 0.0},
    ]
    assert experiment.is_steered
    assert experiment.summary()["is_steered"] is True
    history = experiment.history.set_index("microbatch")
    assert history["lr"].tolist() == [0.05] * 9 + [0.1] * 31
    told = history["changes"].dropna()
    assert {at: json.loads(text) for at, text in told.items()} == {
        1: {"noise": 1.0},
        10: {"lr_scale": 2.0, "noise": 0.0},
    }


def test_an_unsteered_run_says_so():
    experiment = run(Line(LineConfig()))
    assert not experiment.is_steered
    assert experiment.history["changes"].isna().all()


@pytest.mark.parametrize("cut", [0, 1, 9, 10, 25])
def test_recorded_changes_replay_exactly_also_after_a_cut(cut):
    steered = steer(Line(LineConfig()))
    replayed = Line(LineConfig())
    replayed.replay(steered.changes)
    resumed = Line(LineConfig())
    resumed.load_state_dict(saved(run(replayed, until=cut)))
    assert_same_run(run(resumed), steered)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"microbatch": 5, "name": "lr_scale", "value": 1.0}, "microbatch 5: expected one after 5"),
        ({"microbatch": 6, "name": "lr_scale", "value": -1.0}, "lr_scale=-1.0"),
        (
            {"microbatch": 6, "name": "lr_scala", "value": 1.0},
            "control='lr_scala': did you mean 'lr_scale'",
        ),
    ],
)
def test_a_wrong_replay_is_refused_whole(change, message):
    experiment = run(Line(LineConfig()), until=5)
    good = {"microbatch": 30, "name": "noise", "value": 3.0}
    with pytest.raises(ValueError, match=message):
        experiment.replay([good, change])
    assert_same_run(run(experiment), run(Line(LineConfig())))


def test_a_wrong_value_leaves_the_run_as_it_was():
    experiment = run(Line(LineConfig()), until=5)
    with pytest.raises(ValueError, match="lr_scale=nan"):
        experiment.controls["lr_scale"] = float("nan")
    assert_same_run(run(experiment), run(Line(LineConfig())))


@pytest.mark.filterwarnings("ignore:10 windows in a row ran to max_draws=5:UserWarning")
def test_steering_and_saving_from_another_thread():
    experiment = Line(LineConfig(total=400))
    states = []

    def other():
        for value in range(1, 30):
            experiment.controls["lr_scale"] = value
            states.append(copy.deepcopy(experiment.state_dict()))
            assert len(experiment.history) <= 400

    thread = threading.Thread(target=other)
    thread.start()
    run(experiment)
    thread.join()
    for state in states:
        resumed = Line(LineConfig(total=400))
        resumed.load_state_dict(state)
        assert len(resumed.history) == resumed.microbatch == state["microbatch"]
    replayed = Line(LineConfig(total=400))
    replayed.replay(experiment.changes)
    assert_same_run(run(replayed), experiment)


def snapshot(experiment):
    return copy.deepcopy(experiment.state_dict())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LineConfig(seed=1), "its seed is 1, here it is 0"),
        (LineConfig(total=41), "its total is 41, here it is 40"),
    ],
)
def test_the_checkpoint_of_another_config_is_refused(config, message):
    experiment = run(Line(LineConfig()), until=7)
    with pytest.raises(ValueError, match=message):
        experiment.load_state_dict(saved(run(Line(config), until=3)))
    assert_same_run(run(experiment), run(Line(LineConfig())))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.update(data_hash="other"), "its data_hash is 'other'"),
        (lambda s: s.update(experiment="Curve"), "its experiment is 'Curve'"),
        (lambda s: s.update(format=99), "its format is 99"),
        (lambda s: s.clear(), "its format is None"),
        (lambda s: s.update(config=5), "its seed is None, here it is 0"),
        (lambda s: s.pop("columns"), "incomplete or damaged.*columns"),
        (lambda s: s["columns"]["loss"].pop(), "one row per microbatch"),
        (lambda s: s["parts"].pop("optimizer"), "incomplete or damaged.*optimizer"),
        (lambda s: s["parts"]["model"].pop("weight"), "weight"),
        (lambda s: s.pop("plan"), "plan"),
        (lambda s: s["controls"]["values"].update(noise=-1.0), "noise=-1.0"),
        (lambda s: s["generators"].update(data=torch.zeros(3, dtype=torch.uint8)), "damaged"),
    ],
)
def test_a_damaged_state_changes_nothing(damage, message):
    experiment = run(Line(LineConfig()), until=7)
    state = saved(run(Line(LineConfig()), until=12))
    damage(state)
    with pytest.raises(ValueError, match=message):
        experiment.load_state_dict(state)
    assert_same_run(run(experiment), run(Line(LineConfig())))


def test_an_interruption_inside_a_microbatch_is_not_saved_but_can_be_loaded_over():
    uncut = run(Line(LineConfig()))
    experiment = run(Line(LineConfig()), until=7)
    state = saved(experiment)
    step, experiment.wrapper.step = experiment.wrapper.step, None
    with pytest.raises(TypeError):
        next(experiment)
    experiment.wrapper.step = step
    assert not experiment.is_whole
    for call in (experiment.state_dict, experiment.__next__):
        with pytest.raises(RuntimeError, match="'line' was interrupted inside microbatch 8"):
            call()
    experiment.load_state_dict(state)
    assert_same_run(run(experiment), uncut)


def test_the_base_class_works_with_a_plain_optimizer():
    class Plain(Line):
        def __init__(self, config):
            super().__init__(config)
            self.parts["optimizer"] = torch.optim.SGD(self.model.parameters(), lr=0.01)

        def update(self, loss):
            stepped = super().update(loss)
            self.parts["optimizer"].zero_grad()
            return stepped

        def measure(self, batch, stepped):
            return {}

    experiment = run(Plain(LineConfig()))
    assert experiment.history["stepped"].all()


def test_streams_differ_by_name_and_by_seed_and_leave_the_global_one():
    before = torch.get_rng_state()
    draws = {
        (seed, name): torch.rand(4, generator=make_generator(seed, name)).tolist()
        for seed in (0, 1)
        for name in ("data", "weights")
    }
    assert len({tuple(v) for v in draws.values()}) == 4
    assert torch.rand(4, generator=make_generator(0, "data")).tolist() == draws[0, "data"]
    assert torch.equal(torch.get_rng_state(), before)


def test_device_and_dtype_by_name(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    assert find_dtype("bfloat16") is torch.bfloat16


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99"])
def test_a_device_that_is_not_there(name):
    if name.startswith("cuda") and torch.cuda.device_count() > 99:
        pytest.skip("this machine has more than 99 GPUs")
    with pytest.raises(ValueError, match=f"device='{name}': not usable here"):
        find_device(name)


def test_an_unknown_dtype_names_the_nearest():
    with pytest.raises(ValueError, match="dtype='float23': did you mean 'float32'"):
        find_dtype("float23")
