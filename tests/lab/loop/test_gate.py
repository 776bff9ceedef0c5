"""The thread that trains: what its buttons do, what it leaves behind, how often it speaks."""

import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from gqc_lab import Controls, Experiment, Live, Setting
from gqc_lab.loop import live as module
from gqc_lab.loop.gate import stop_all
from gqc_lab.loop.jupyter import Cell

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@dataclass(frozen=True)
class Config:
    length: int = 50


class Descent(Experiment):
    """x <- x - lr * scale * x, a token each; ``caught[n]`` is called inside microbatch n."""

    def __init__(self, length=50, sleep=0.0, fails_at=None):
        self.model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        torch.nn.init.ones_(self.model.weight)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.sleep, self.fails_at = sleep, fails_at
        self.ran_in, self.caught = set(), {}
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
        self.caught.get(self.microbatch + 1, bool)()
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


def until(condition):
    """Wait for it; pytest's time limit ends what waits in vain."""
    while not condition():
        time.sleep(0.001)


def test_while_a_thread_trains_nobody_else_reads_the_optimizer():
    experiment, readers = Descent(length=5), []
    go_on = threading.Event()
    experiment.caught[3] = go_on.wait
    experiment.sgd.statistics = lambda: readers.append(threading.current_thread()) or {}
    runner = Live(experiment)
    assert readers == [threading.current_thread()]  # nothing trains yet
    runner.start()
    go_on.set()
    assert runner.wait(600)
    assert len(readers) > 2
    assert set(readers[1:]) == {runner._thread}


def test_a_run_in_a_thread_is_the_run_in_the_foreground():
    foreground, background = Descent(), Descent()
    list(foreground)
    runner = Live(background)
    assert runner.state == "ready"
    runner.start()
    assert runner.wait(600)
    assert runner.state == "finished"
    assert losses(background) == losses(foreground)
    assert threading.get_ident() not in background.ran_in
    assert runner.wait(0)


def test_pause_holds_and_start_goes_on_to_the_same_end():
    whole, experiment = Descent(), Descent()
    list(whole)
    runner = Live(experiment)
    experiment.caught[3] = runner.pause
    runner.start()
    assert runner.wait(600)
    assert (runner.state, experiment.microbatch) == ("paused", 3)  # the one that was under way
    runner.start()
    assert runner.wait(600)
    assert losses(experiment) == losses(whole)


def test_start_takes_back_a_pause_that_was_not_noticed_yet():
    experiment = Descent(length=20)
    runner = Live(experiment)
    experiment.caught[3] = lambda: (runner.pause(), runner.start())
    runner.start()
    runner.wait(600)
    assert runner.state == "finished"


def test_step_trains_on_as_many_microbatches_as_asked():
    experiment = Descent()
    runner = Live(experiment)
    runner.step()
    assert runner.wait(600)
    assert (experiment.microbatch, runner.state) == (1, "paused")
    runner.step(3)
    assert runner.wait(600)
    assert experiment.microbatch == 4


def test_stop_is_for_good_until_reset_begins_the_same_run_anew():
    whole, experiment = Descent(), Descent()
    list(whole)
    runner = Live(experiment)
    begun = threading.Event()
    experiment.caught[2] = lambda: (begun.set(), until(lambda: runner._is_stopping))
    runner.start()
    begun.wait()
    runner.stop()
    assert (runner.state, runner.wait(0)) == ("stopped", True)
    held = experiment.microbatch
    assert held == 2
    runner.start()
    runner.step()
    assert experiment.microbatch == held
    runner.reset()
    assert (experiment.microbatch, runner.state) == (0, "ready")
    experiment.caught.clear()
    assert len(runner.curves.points("loss")[0]) == 0
    runner.start()
    assert runner.wait(600)
    assert losses(experiment) == losses(whole)


def test_stop_before_start_and_twice():
    runner = Live(Descent())
    runner.stop()
    runner.stop()
    assert runner.state == "stopped"


def test_a_stop_before_the_first_batch_is_no_end():
    runner = Live(Descent())
    runner.listeners.append(lambda live: live.stop() if live.state == "running" else None)
    runner.start()  # whose thread tells first and then looks for a batch
    assert runner.wait(600)
    assert (runner.state, runner.experiment.microbatch) == ("stopped", 0)


def test_reset_keeps_the_controls_that_were_set_and_they_count_as_steering():
    experiment = Descent(length=5)
    runner = Live(experiment)
    runner.step()
    runner.wait(600)
    experiment.controls["scale"] = 3.0
    runner.reset()
    assert experiment.controls["scale"] == 3.0
    runner.start()
    runner.wait(600)
    assert experiment.changes == [{"microbatch": 1, "name": "scale", "value": 3.0}]


def test_an_exception_ends_the_run_with_its_traceback_and_reset_mends_it():
    experiment = Descent(fails_at=4)
    heard = []
    runner = Live(experiment)
    runner.listeners.append(lambda r: heard.append(r.state))
    runner.start()
    assert runner.wait(600)
    assert runner.state == heard[-1] == "failed"
    assert "FloatingPointError: broke at 4" in runner.error
    assert "in draw_batch" in runner.error
    runner.start()  # nothing to go on with
    assert runner.wait(0)
    experiment.fails_at = None
    runner.reset()
    assert runner.error is None
    runner.start()
    assert runner.wait(600)
    assert runner.state == "finished"


def test_a_call_that_the_end_of_a_loop_has_left_is_made_once():
    experiment, begun, made = Descent(fails_at=3), threading.Event(), []
    runner = Live(experiment)
    experiment.caught[3] = lambda: (begun.set(), until(lambda: runner._calls))
    runner.start()
    begun.wait()
    runner.between(lambda: made.append(1))
    experiment.fails_at = None
    experiment.caught.clear()
    runner.reset()
    runner.start()
    assert runner.wait(600)
    assert (runner.state, made) == ("finished", [1])


def test_a_view_that_fails_is_dropped_and_its_error_kept():
    runner = Live(Descent())

    def draw(r):
        if r.experiment.microbatch:
            raise LookupError("no such trace")

    runner.listeners.append(draw)
    runner.start()
    assert runner.wait(600)
    assert runner.state == "finished"
    assert "LookupError('no such trace')" in runner.error
    assert runner.listeners == []


def test_updates_are_coalesced_and_the_last_one_is_whole():
    experiment = Descent(length=1500, sleep=0.0002)
    runner = Live(experiment)
    told = []
    runner.listeners.append(lambda r: told.append((time.perf_counter(), r.experiment.microbatch)))
    began = time.perf_counter()
    runner.start()
    assert runner.wait(600)
    seconds = time.perf_counter() - began
    # one at the start, one at the first record, at most ten a second, one at the end
    assert 3 <= len(told) <= 10 * seconds + 3
    assert told[-1][1] == 1500


def test_a_slow_listener_takes_its_share_of_the_time():
    experiment = Descent(length=1500, sleep=0.001)
    runner = Live(experiment)
    spent = []

    def draw(r):
        began = time.perf_counter()
        time.sleep(0.03)
        spent.append(time.perf_counter() - began)

    runner.listeners.append(draw)
    began = time.perf_counter()
    runner.start()
    assert runner.wait(600)
    seconds = time.perf_counter() - began
    told = spent[1:-1]  # start and end are told in any case
    assert sum(told) < module.SHARE * seconds + 2 * max(told)


def test_the_speed_and_the_time_left_are_those_of_now(monkeypatch):
    experiment = Descent(length=100000, sleep=0.0005)
    runner = Live(experiment)
    # by this clock a microbatch takes 2 ms, and after 3 s 20 ms
    seconds = lambda: (n := experiment.microbatch) * 0.002 + max(n - 1500, 0) * 0.018  # noqa: E731
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=seconds))
    assert runner.speed is None
    runner.start()
    until(lambda: experiment.microbatch > 1000)
    assert runner.speed == pytest.approx(500)
    until(lambda: seconds() > 6)
    runner.pause()
    assert runner.wait(600)
    assert runner.speed is None
    runner.start()
    until(lambda: runner.speed is not None)
    assert runner.speed == pytest.approx(50)
    assert runner.seconds_left == pytest.approx(100000 / 50, rel=0.1)
    runner.stop()


class Shell:
    """As much of IPython as a cell asks for."""

    def __init__(self, cell, turn):
        self.parent = {"metadata": {"cellId": cell}, "header": {"msg_id": turn}}
        self.events = self

    def get_parent(self):
        return self.parent

    def register(self, name, call):
        pass

    unregister = register


def test_a_cell_that_runs_again_stops_what_it_ran_before_and_nothing_else():
    places = [("a", "1"), ("a", "1"), ("b", "1")]
    first, twin, other = (
        Live(Descent(length=10**6, sleep=0.002), cell=Cell(Shell(*place))) for place in places
    )
    for runner in (first, twin, other):
        runner.start()
    assert not first.wait(0)
    assert not twin.wait(0)
    second = Live(Descent(length=10**6, sleep=0.002), cell=Cell(Shell("a", "2")))
    assert first.wait(0)
    assert twin.wait(0)
    assert (first.state, twin.state, other.state) == ("replaced", "replaced", "running")
    second.start()
    stop_all()
    assert second.wait(0)
    assert other.wait(0)


def test_it_can_take_over_an_experiment_that_has_begun():
    whole, experiment = Descent(), Descent()
    list(whole)
    for _ in range(7):
        next(experiment)
    runner = Live(experiment)
    assert runner.state == "paused"
    assert len(runner.curves.points("loss")[0]) == 7
    runner.start()
    assert runner.wait(600)
    assert losses(experiment) == losses(whole)
    runner.reset()
    assert experiment.microbatch == 7
    assert Live(whole).state == "finished"
