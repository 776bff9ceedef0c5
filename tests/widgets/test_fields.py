"""A field for any control: one line in a notebook."""

from gqc_lab.studies import pretraining
from gqc_widgets.fields import Fields


def test_any_control_of_an_experiment_gets_a_field():
    experiment = pretraining.build(pretraining.config("smoke", method="mht", tokens=8 * 512))
    fields = Fields(experiment.controls, {"error_tolerance": "tolerance", "lr_scale": "rate"})
    fields.edit("error_tolerance", "0.3")
    next(experiment)
    assert experiment.changes == [{"microbatch": 1, "name": "error_tolerance", "value": 0.3}]
    fields.edit("lr_scale", "fast")
    assert "expected a number" in fields.messages["lr_scale"]
    assert "expected a number" in fields.values["lr_scale"]["error"]
    fields.show(["lr_scale"])
    assert fields.shown == ["lr_scale"]
