"""A run has a panel for what it records, in its units; a loop of one's own for whatever it logs."""

import numpy as np
import pytest
import torch
from drawn import drawn

from gqc_lab.studies import pretraining
from gqc_lab.studies.vgs import training as vgs_training
from gqc_widgets import Live, LiveRun
from gqc_widgets.panels import Panels, draw, line, panel, run_panels

LOSS = "loss [nat/token]"
TEXT = [LOSS, "norm of mean gradient", "draws per step", "noise / signal"]
SCALER = ["variance / signal", "factor on the gradient"]


def titles(view):
    return [each["title"] for each in view.panels.panels]


def text(**fields):
    return pretraining.build(pretraining.config("smoke", tokens=4 * 512, **fields))


def small(task):
    return vgs_training.build(vgs_training.config("smoke", task=task, steps=4))


@pytest.mark.parametrize(
    ("build", "expected", "unit"),
    [
        (lambda: text(method="gnts"), TEXT, "training tokens"),
        (lambda: text(method="vgs"), TEXT + SCALER, "training tokens"),
        (lambda: small("digits"), ["loss [nat]", TEXT[1], *SCALER], "examples"),
    ],
    ids=["gnts", "vgs", "digits"],
)
def test_panels_are_those_of_the_experiment_before_and_after_its_first_record(
    build, expected, unit
):
    live = LiveRun(build())
    assert titles(live.view) == expected
    live.step(2)
    assert live.wait(600)
    assert titles(live.view) == expected
    assert {each["x"] for each in live.view.panels.panels} == {unit}
    assert len(drawn(live.view.panels, "loss")[0]) == 2


def test_whatever_a_loop_logs_has_a_panel_and_its_validation_is_in_it():
    live = Live(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    assert titles(live.view) == []
    for i in live(range(5)):
        live.log(loss=i, reward=2 * i)
        if i == 3:
            live.log(accuracy=0.5, val_reward=7)
    live.finish()
    assert titles(live.view) == ["loss", "reward", "accuracy"]
    assert drawn(live.view.panels, "reward")[1] == [0, 2, 4, 6, 8]
    assert drawn(live.view.panels, "val_reward")[1] == [7]
    assert [t["meta"] for t in live.view.panels.panels[1]["traces"]] == [
        "reward", "smooth reward", "val_reward",
    ]  # fmt: skip


def test_a_learning_rate_is_not_smoothed():
    [rate] = run_panels(["lr"], "microbatch", has_others=True)
    assert [trace["meta"] for trace in rate["traces"]] == ["lr"]


def sent(view, name, axis):
    return np.frombuffer(view.points[name][axis])


def test_a_curve_that_is_filled_leaves_the_others_and_is_one_message():
    view, changes = Panels([panel("p", line("a", "a", "red"), line("b", "b", "red"))]), []
    view.fill({"a": ([1], [2])})
    view.observe(lambda change: changes.append(change["name"]))
    view.fill({"b": ([5, 6], [7, 8]), "unknown": ([1], [1])})
    assert changes == ["points"]
    assert sent(view, "a", "y").tolist() == [2]
    assert sent(view, "b", "y").tolist() == [7, 8]
    view.fill({"a": ([], [])})
    assert sent(view, "a", "y").tolist() == []


def test_plotly_comes_once_a_kernel():
    one, other = Panels([]), Panels([])
    assert one._lib is other._lib
    assert len(one._lib.code) > 1_000_000
    assert len(str(one.get_state()["_esm"])) < 20_000


def test_the_picture_is_a_png_of_what_there_is():
    panels = [panel("p", line("a", "a", "text")), panel("q", line("b", "b", "#0072B2"), log=True)]
    assert draw(panels, {}, "nothing") is None
    png = draw(panels, {"a": ([1, 2], [3, 4])}, "run")
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(png) < 60_000
    assert draw(panels, {"a": ([1, 2], [3, 4])}, "run") == png  # no date in it
