"""A field for any control: one line in a notebook."""

from gqc_lab.studies import pretraining
from gqc_widgets.fields import Fields


def test_any_control_of_an_experiment_gets_a_field():
    experiment = pretraining.build(pretraining.config("smoke", method="mht", tokens=8 * 512))
    fields = Fields(experiment.controls, {"error_tolerance": "tolerance", "lr_scale": "rate"})
    fields.inputs["error_tolerance"].value = "0.3"
    next(experiment)
    assert experiment.changes == [{"microbatch": 1, "name": "error_tolerance", "value": 0.3}]
    fields.inputs["lr_scale"].value = "fast"
    assert "expected a number" in fields.messages["lr_scale"]
    assert "expected a number" in fields.errors["lr_scale"].value
    fields.show(["lr_scale"])
    assert fields.inputs["error_tolerance"] not in fields.children
