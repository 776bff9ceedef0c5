"""The thread that trains: what its buttons do, what it leaves behind, how often it speaks."""

import threading
import time
from dataclasses import dataclass

import pytest
import torch

from gqc_lab import Controls, Experiment, Setting
from gqc_widgets import runner as module
from gqc_widgets.runner import Runner, claim, stop_all


@dataclass(frozen=True)
class Config:
    length: int = 50


class Descent(Experiment):
    """x <- x - lr * scale * x, a token each, slowly enough to be caught in the act."""

    def __init__(self, length=50, sleep=0.002, fails_at=None):
        self.model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        torch.nn.init.ones_(self.model.weight)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.sleep, self.fails_at = sleep, fails_at
        self.ran_in = set()
        super().__init__(
            Config(length),
            label="descent",
            total=length,
            parts={"model": self.model, "optimizer": self.sgd},
            generators={"data": torch.Generator()},
            controls=Controls({"scale": Setting(1.0, low=0)}),
        )

    def draw_batch(self):
        self.ran_in.add(threading.get_ident())
        time.sleep(self.sleep)
        if self.fails_at is not None and self.microbatch + 1 >= self.fails_at:
            raise FloatingPointError(f"broke at {self.fails_at}")
        self.sgd.zero_grad()
        self.sgd.param_groups[0]["lr"] = 0.01 * self.controls.applied["scale"]
        return torch.ones(1, 1, dtype=torch.float64)

    def compute_loss(self, batch):
        return self.model(batch).square().sum()

    def amount(self, batch):
        return 1


def losses(experiment):
    return experiment.history["loss"].tolist()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    stop_all()
    assert set(threading.enumerate()) == before


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def test_a_run_in_a_thread_is_the_run_in_the_foreground():
    foreground, background = Descent(), Descent()
    list(foreground)
    runner = Runner(background)
    assert runner.state == "ready"
    runner.start()
    assert runner.wait(20)
    assert runner.state == "finished"
    assert losses(background) == losses(foreground)
    assert threading.get_ident() not in background.ran_in
    assert runner.record["tokens"] == 50
    assert runner.wait(0)


def test_pause_holds_and_start_goes_on_to_the_same_end():
    whole, experiment = Descent(), Descent(sleep=0.01)
    list(whole)
    runner = Runner(experiment)
    runner.start()
    until(lambda: experiment.microbatch >= 3)
    runner.pause()
    paused = time.monotonic()
    until(lambda: runner.state == "paused")
    assert time.monotonic() - paused < 0.5
    held = experiment.microbatch
    assert held < 50
    time.sleep(0.1)
    assert experiment.microbatch == held
    assert runner.wait(5)
    runner.start()
    assert runner.wait(20)
    assert losses(experiment) == losses(whole)


def test_start_takes_back_a_pause_that_was_not_noticed_yet():
    experiment = Descent(length=20, sleep=0.01)
    runner = Runner(experiment)
    runner.start()
    runner.pause()
    runner.start()
    runner.wait(20)
    runner.start()  # had it been noticed: this finishes the run
    runner.wait(20)
    assert runner.state == "finished"


def test_step_trains_on_as_many_microbatches_as_asked():
    experiment = Descent()
    runner = Runner(experiment)
    runner.step()
    assert runner.wait(5)
    assert (experiment.microbatch, runner.state) == (1, "paused")
    runner.step(3)
    assert runner.wait(5)
    assert experiment.microbatch == 4


def test_stop_is_for_good_until_reset_begins_the_same_run_anew():
    whole, experiment = Descent(), Descent(sleep=0.005)
    list(whole)
    runner = Runner(experiment)
    runner.start()
    until(lambda: experiment.microbatch >= 2)
    runner.stop()
    assert (runner.state, runner.wait(0)) == ("stopped", True)
    held = experiment.microbatch
    runner.start()
    runner.step()
    assert experiment.microbatch == held
    runner.reset()
    assert (experiment.microbatch, runner.state, runner.record) == (0, "ready", None)
    assert runner.curves.points("loss") == ([], [])
    runner.start()
    assert runner.wait(20)
    assert losses(experiment) == losses(whole)


def test_stop_before_start_and_twice():
    runner = Runner(Descent())
    runner.stop()
    runner.stop()
    assert runner.state == "stopped"


def test_reset_keeps_the_controls_that_were_set_and_they_count_as_steering():
    experiment = Descent(length=5)
    runner = Runner(experiment)
    runner.step()
    runner.wait(5)
    experiment.controls["scale"] = 3.0
    runner.reset()
    assert experiment.controls["scale"] == 3.0
    runner.start()
    runner.wait(5)
    assert experiment.changes == [{"microbatch": 1, "name": "scale", "value": 3.0}]


def test_an_exception_ends_the_run_with_its_traceback_and_reset_mends_it():
    experiment = Descent(fails_at=4)
    heard = []
    runner = Runner(experiment)
    runner.listeners.append(lambda r: heard.append(r.state))
    runner.start()
    assert runner.wait(5)
    assert runner.state == heard[-1] == "failed"
    assert "FloatingPointError: broke at 4" in runner.error
    assert "in draw_batch" in runner.error
    runner.start()  # nothing to go on with
    assert runner.wait(0)
    experiment.fails_at = None
    runner.reset()
    assert runner.error is None
    runner.start()
    assert runner.wait(20)
    assert runner.state == "finished"


def test_an_exception_of_a_listener_ends_the_run_and_is_kept():
    runner = Runner(Descent())

    def draw(r):
        if r.experiment.microbatch:
            raise LookupError("no such trace")

    runner.listeners.append(draw)
    runner.start()
    assert runner.wait(5)
    assert runner.state == "failed"
    assert "LookupError: no such trace" in runner.error


def test_updates_are_coalesced_and_the_last_one_is_whole():
    experiment = Descent(length=1500, sleep=0.0002)
    runner = Runner(experiment)
    told = []
    runner.listeners.append(lambda r: told.append((time.perf_counter(), r.experiment.microbatch)))
    began = time.perf_counter()
    runner.start()
    assert runner.wait(60)
    seconds = time.perf_counter() - began
    # one at the start, one at the first record, at most ten a second, one at the end
    assert 3 <= len(told) <= 10 * seconds + 3
    assert told[-1][1] == 1500


def test_a_slow_listener_takes_its_share_of_the_time():
    experiment = Descent(length=1500, sleep=0.001)
    runner = Runner(experiment)
    spent = []

    def draw(r):
        began = time.perf_counter()
        time.sleep(0.03)
        spent.append(time.perf_counter() - began)

    runner.listeners.append(draw)
    began = time.perf_counter()
    runner.start()
    assert runner.wait(60)
    seconds = time.perf_counter() - began
    told = spent[1:-1]  # start and end are told in any case
    assert sum(told) < module.SHARE * seconds + 2 * max(told)


def test_the_speed_and_the_time_left_are_those_of_now():
    experiment = Descent(length=100000, sleep=0.002)
    runner = Runner(experiment)
    assert runner.speed is None
    runner.start()
    until(lambda: runner.speed is not None)
    before, began = experiment.done, time.perf_counter()
    time.sleep(1.0)
    rate = (experiment.done - before) / (time.perf_counter() - began)
    assert runner.speed == pytest.approx(rate, rel=0.5)  # a busy machine
    assert runner.seconds_left == pytest.approx(100000 / runner.speed, rel=0.1)
    runner.stop()
    assert runner.speed is None


def test_a_cell_that_runs_again_stops_what_it_ran_before_and_nothing_else():
    first, twin, second, other = (Runner(Descent(length=10**6)) for _ in range(4))
    heard = []
    first.listeners.append(heard.append)
    claim(first, "cell a", 1)
    claim(twin, "cell a", 1)
    claim(other, "cell b", 1)
    for runner in (first, twin, other):
        runner.start()
    assert not first.wait(0)
    assert not twin.wait(0)
    heard.clear()
    claim(second, "cell a", 2)
    assert first.wait(0)
    assert twin.wait(0)
    assert not other.wait(0)
    assert heard == []  # the view is gone
    second.start()
    stop_all()
    assert second.wait(0)
    assert other.wait(0)


def test_it_can_take_over_an_experiment_that_has_begun():
    whole, experiment = Descent(), Descent()
    list(whole)
    for _ in range(7):
        next(experiment)
    runner = Runner(experiment)
    assert runner.state == "paused"
    assert len(runner.curves.points("loss")[0]) == 7
    runner.start()
    assert runner.wait(20)
    assert losses(experiment) == losses(whole)
    runner.reset()
    assert experiment.microbatch == 7
    assert Runner(whole).state == "finished"
