"""The view of a run, without a browser: what its buttons do and what it writes."""

import math

import pytest
import torch
from drawn import drawn

from gqc_lab.loop.jupyter import current_cell
from gqc_lab.studies import pretraining
from gqc_widgets import Live, LiveRun
from gqc_widgets.live import LiveView, progress_text
from gqc_widgets.side_by_side import _news

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def make(tokens=20 * 512, **fields):
    return pretraining.build(pretraining.config("smoke", tokens=tokens, **fields))


def disabled(view):
    return {name for name, button in view.buttons.items() if button.disabled}


def y(view, key):
    return drawn(view.panels, key)[1]


def test_buttons_can_be_pressed_when_they_mean_something():
    live = LiveRun(make())
    view = live.view
    assert disabled(view) == {"pause", "stop", "reset", "save"}
    view.buttons["step"].click()
    live.wait(600)
    assert disabled(view) == {"pause"}
    assert view.buttons["start"].description == "Resume"
    view.buttons["stop"].click()
    assert disabled(view) == {"start", "pause", "step", "stop"}
    view.buttons["reset"].click()
    assert disabled(view) == {"pause", "stop", "reset", "save"}
    assert view.buttons["start"].description == "Start"


def test_at_the_end_it_shows_the_whole_run():
    experiment = make()
    live = LiveRun(experiment)
    view = live.view
    view.buttons["start"].click()
    assert live.wait(600)
    history = experiment.history
    assert y(view, "loss") == history["loss"].tolist()
    assert drawn(view.panels, "loss")[0] == history["tokens"].tolist()
    steps = history[history["stepped"]]
    assert y(view, "grad_norm") == steps["grad_norm"].tolist()
    assert view.bar.value == 1
    assert "finished" in view.state.value
    assert "10,240 of 10,240 tokens" in view.progress.value
    assert f"{history['loss'].iloc[-1]:.4g}" in view.table.value


def test_a_method_that_reads_no_norm_is_shown_without_one():
    live = LiveRun(make(method="adamw"))
    view = live.view
    view.buttons["start"].click()
    assert live.wait(600)
    assert live.state == "finished"
    assert y(view, "gradient_norm_threshold") == []
    assert "norm threshold</span><br><b>–</b>" in view.table.value


def test_an_exception_is_shown_with_its_traceback_escaped():
    experiment = make()

    def fail():
        raise ValueError("<b> is not a batch")

    experiment.draw_batch = fail
    live = LiveRun(experiment)
    view = live.view
    view.buttons["start"].click()
    assert live.wait(600)
    assert "failed" in view.state.value
    assert "ValueError: &lt;b&gt; is not a batch" in view.trouble.value
    assert "in fail" in view.trouble.value
    assert view.bar.bar_style == "danger"
    del experiment.draw_batch
    view.buttons["reset"].click()
    assert view.trouble.value == ""
    view.buttons["start"].click()
    assert live.wait(600)
    assert live.state == "finished"


def test_a_button_that_fails_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    live = LiveRun(make(), folder=tmp_path / "file")
    view = live.view
    view.buttons["step"].click()
    live.wait(600)
    view.buttons["save"].click()
    assert "save: " in view.message.value


def test_close_stops_the_run():
    live = LiveRun(make(tokens=2**20))
    view = live.view
    view.buttons["start"].click()
    assert not live.wait(0)
    view.close()
    assert live.wait(0)


def test_in_a_batch_it_says_that_nobody_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("GQC_RUN_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="set interactive=False"):
        LiveRun(make())


def names_of_fields(view):
    fields = view.fields
    assert [spec["name"] for spec in fields.specs] == fields.shown == list(fields.values)
    return fields.shown


def test_a_control_that_is_added_later_has_a_field_in_every_view():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    live = Live(optimizer, total=4)
    views = [live.view, LiveView(live)]
    before = names_of_fields(views[0])
    live.control("dropout", 0.3, low=0, high=1, label="share dropped")
    for view in views:
        assert names_of_fields(view) == [*before, "dropout"]
        assert view.fields.specs[-1]["label"] == "share dropped"
        assert view.fields.specs[-1]["slider"] > 0
    seen = []
    for number in live(range(4)):
        if number == 1:
            live.control("mode", "a", choices=("a", "b"))
            views[1].fields.edit("dropout", "0.5")
            views[0].fields.edit("mode", "b")
        seen.append((live["dropout"], live.experiment.controls.applied.get("mode")))
        live.log(loss=1.0)
    assert seen == [(0.3, None), (0.3, "a"), (0.5, "b"), (0.5, "b")]
    assert [view.fields.values["dropout"]["text"] for view in views] == ["0.5"] * 2
    assert live.error is None
    live.control("count", 12_345_678)
    assert views[0].fields.values["count"]["text"] == "12345678"


def test_a_validation_that_diverged_is_not_shown_as_the_one_before():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    live = Live(optimizer, total=3)
    for number in live(range(3)):
        live.log(loss=1.0)
        if number < 2:
            live.log(val_loss=(2.5, math.nan)[number])
    assert "held-out loss</span><br><b>nan</b>" in live.view.table.value
    assert _news(live).endswith("held-out loss nan")


@pytest.mark.parametrize(
    ("speed", "shown"), [(0.04, "0.04 batches/s"), (1234.5, "1,234 batches/s")]
)
def test_a_slow_loop_has_a_speed(monkeypatch, speed, shown):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    monkeypatch.setattr(Live, "speed", speed)
    assert shown in progress_text(Live(optimizer, total=4))


def test_outside_jupyter_there_is_no_cell():
    assert current_cell() is None
