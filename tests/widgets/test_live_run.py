"""The view of a run, without a browser: what its buttons do and what it writes."""

import threading

import pytest

from gqc_lab.studies import pretraining
from gqc_widgets import LiveRun
from gqc_widgets import live_run as module
from gqc_widgets.curves import Curves
from gqc_widgets.jupyter import Cell, current_cell
from gqc_widgets.runner import stop_all
from gqc_widgets.status import clock


def make(tokens=20 * 512, **fields):
    return pretraining.build(pretraining.config("smoke", tokens=tokens, **fields))


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    stop_all()
    assert set(threading.enumerate()) == before


def disabled(view):
    return {name for name, button in view.buttons.items() if button.disabled}


def trace(view, key):
    return next(t for t in view.figure.plot.data if t.meta == key)


def test_buttons_can_be_pressed_when_they_mean_something():
    view = LiveRun(make())
    assert disabled(view) == {"pause", "reset", "save"}
    view.buttons["step"].click()
    view.runner.wait(600)
    assert disabled(view) == {"pause"}
    assert view.buttons["start"].description == "Resume"
    view.buttons["stop"].click()
    assert disabled(view) == {"start", "pause", "step", "stop"}
    view.buttons["reset"].click()
    assert disabled(view) == {"pause", "reset", "save"}
    assert view.buttons["start"].description == "Start"


def test_at_the_end_it_shows_the_whole_run():
    experiment = make()
    view = LiveRun(experiment)
    view.buttons["start"].click()
    assert view.runner.wait(600)
    history = experiment.history
    assert list(trace(view, "loss").y) == history["loss"].tolist()
    assert list(trace(view, "loss").x) == history["tokens"].tolist()
    steps = history[history["stepped"]]
    assert list(trace(view, "grad_norm").y) == steps["grad_norm"].tolist()
    assert view.bar.value == view.bar.max == experiment.total
    assert "finished" in view.state.value
    assert "10,240 of 10,240 tokens" in view.progress.value
    assert f"{history['loss'].iloc[-1]:.4g}" in view.table.value
    drawn = {t.meta for t in view.figure.plot.data}
    assert drawn == {name for name in Curves.NAMES if "vgs/" not in name} - {"factor"}


def test_a_method_that_reads_no_norm_is_shown_without_one():
    view = LiveRun(make(method="adamw"))
    view.buttons["start"].click()
    assert view.runner.wait(600)
    assert view.runner.state == "finished"
    assert len(trace(view, "gradient_norm_threshold").y) == 0
    assert "norm threshold</span><br><b>–</b>" in view.table.value


def test_an_exception_is_shown_with_its_traceback_escaped():
    experiment = make()

    def fail():
        raise ValueError("<b> is not a batch")

    experiment.draw_batch = fail
    view = LiveRun(experiment)
    view.buttons["start"].click()
    assert view.runner.wait(600)
    assert "failed" in view.state.value
    assert "ValueError: &lt;b&gt; is not a batch" in view.message.value
    assert "in fail" in view.message.value
    assert view.bar.bar_style == "danger"
    del experiment.draw_batch
    view.buttons["reset"].click()
    assert view.message.value == ""
    view.buttons["start"].click()
    assert view.runner.wait(600)
    assert view.runner.state == "finished"


def test_a_button_that_fails_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    view = LiveRun(make(), folder=tmp_path / "file")
    view.buttons["step"].click()
    view.runner.wait(600)
    view.buttons["save"].click()
    assert "<b>save:</b>" in view.message.value


def test_close_stops_the_run():
    view = LiveRun(make(tokens=2**20))
    view.buttons["start"].click()
    assert not view.runner.wait(0)
    view.close()
    assert view.runner.wait(0)


def test_a_cell_that_runs_again_stops_the_run_of_its_former_view(monkeypatch):
    turn = {"n": 0}

    def cell():
        return Cell("cell-7", str(turn["n"]), lambda: None)

    monkeypatch.setattr(module, "current_cell", cell)
    first = LiveRun(make(tokens=2**20))
    first.runner.start()
    turn["n"] = 1
    LiveRun(make())
    assert first.runner.wait(0)


def test_in_a_batch_it_says_that_nobody_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("GQC_RUN_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="set interactive=False"):
        LiveRun(make())


def test_outside_jupyter_there_is_no_cell():
    assert current_cell() is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")]
)
def test_a_clock_is_read_by_people(seconds, text):
    assert clock(seconds) == text
