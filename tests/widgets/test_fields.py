"""A field for any control: one line in a notebook."""

import contextlib

import pytest

from gqc_lab.loop.controls import Controls
from gqc_lab.loop.settings import Setting
from gqc_lab.studies import pretraining
from gqc_widgets.fields import Fields


def test_any_control_of_an_experiment_gets_a_field():
    experiment = pretraining.build(pretraining.config("smoke", method="mht", tokens=8 * 512))
    fields = Fields(experiment.controls, ["error_tolerance", "lr_scale"])
    fields.edit("error_tolerance", "0.3")
    next(experiment)
    assert experiment.changes == [{"microbatch": 1, "name": "error_tolerance", "value": 0.3}]
    fields.edit("lr_scale", "fast")
    assert "expected a number" in fields.messages["lr_scale"]
    assert "expected a number" in fields.values["lr_scale"]["error"]
    fields.show(["lr_scale"])
    assert fields.shown == ["lr_scale"]


def fields(**specs):
    controls = Controls({"lr": Setting(0.1, low=0), **specs})
    return controls, Fields(controls, controls, has_sliders=True)


@pytest.mark.parametrize(
    "edit", [["nope", "1"], ["lr", [1]], ["lr", {"a": 1}], ["lr", None], ["lr", True]]
)
def test_a_bad_message_leaves_the_fields_their_ears(edit):
    controls, shown = fields()
    with contextlib.suppress(ValueError):
        shown._hear({"edit": edit})
    shown.follow()
    shown._hear({"edit": ["lr", "0.5"]})
    assert (controls["lr"], shown.messages) == (0.5, {})


@pytest.mark.parametrize(
    ("text", "value"), [("False", False), ("0", False), (" true", True), ("1", True)]
)
def test_a_flag_is_read_and_shown(text, value):
    controls = Controls({"flag": Setting(not value, kind=bool), "lr": Setting(0.1)})
    shown = Fields(controls, ["flag"])
    assert shown.values["flag"]["text"] == str(not value)
    shown.edit("flag", text)
    assert (controls["flag"], shown.values["flag"]["text"]) == (value, str(value))
    shown.edit("flag", "perhaps")
    assert "expected bool" in shown.messages["flag"]


@pytest.mark.parametrize(
    "spec", [Setting(3.0, low=3, high=3), Setting(7.0, low=5), Setting(-3.0, high=0)]
)
def test_each_notch_of_a_slider_is_allowed(spec):
    controls, shown = fields(x=spec)
    for notch in range(0, 201, 20):
        shown._hear({"slide": ["x", notch]})
        assert shown.messages == {}
    assert spec.low <= controls["x"] <= spec.high
