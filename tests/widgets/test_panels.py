"""The figure of a run has a panel for what the run records, in its units, and no other."""

from dataclasses import dataclass

import pytest
import torch

from gqc_lab import Experiment
from gqc_lab.studies import pretraining
from gqc_lab.studies.vgs import training as vgs_training
from gqc_widgets import LiveRun
from gqc_widgets.curves import Curves
from gqc_widgets.panels import PANELS, run_figure, run_panels

LOSS = "loss [nat/token]"
TEXT = [LOSS, "norm of mean gradient", "draws per step", "noise / signal"]
SCALER = ["variance / signal", "factor on the gradient"]


def titles(view):
    layout = view.figure.plot.to_dict()["layout"]
    axes = sorted((k for k in layout if k.startswith("yaxis")), key=lambda k: int(k[5:] or 1))
    return [layout[axis]["title"]["text"] for axis in axes if "title" in layout[axis]]


@pytest.mark.parametrize(
    ("build", "expected", "unit"),
    [
        (lambda: text(method="gnts"), TEXT, "training tokens"),
        (lambda: text(method="adamw"), TEXT, "training tokens"),
        (lambda: text(method="vgs"), TEXT + SCALER, "training tokens"),
        (lambda: small("digits"), ["loss [nat]", TEXT[1], *SCALER], "examples"),
        (lambda: small("values"), ["loss [reward²]", TEXT[1], *SCALER], "examples"),
    ],
    ids=["gnts", "adamw", "vgs", "digits", "values"],
)
def test_panels_are_those_of_the_experiment_before_and_after_its_first_record(
    build, expected, unit
):
    view = LiveRun(build())
    figure = view.figure
    assert titles(view) == expected
    view.runner.step(2)
    assert view.runner.wait(600)
    assert titles(view) == expected
    assert view.figure is figure  # nothing new was learnt
    drawn = {t.meta for t in view.figure.plot.data}
    for name in drawn - {"forced", "val_loss", "noise_scale", "gradient_norm_threshold"}:
        curve = next(t for t in view.figure.plot.data if t.meta == name)
        has_none = view.runner.record.get(name, 0) is None
        assert len(curve.y) > 0 or has_none, name
    assert unit in str(view.figure.plot.layout)


def text(**fields):
    return pretraining.build(pretraining.config("smoke", tokens=4 * 512, **fields))


def small(task):
    return vgs_training.build(vgs_training.config("smoke", task=task, steps=4))


@dataclass(frozen=True)
class Config:
    length: int = 3


class Plain(Experiment):
    """Tells of nothing that it will measure."""

    unit = "examples"

    def __init__(self):
        self.model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        parts = {"model": self.model, "optimizer": optimizer}
        super().__init__(Config(), label="plain", total=3, parts=parts, generators={})

    def draw_batch(self):
        return torch.ones(1, 1)

    def compute_loss(self, batch):
        return self.model(batch).square().sum()

    def amount(self, batch):
        return 1

    def measure(self, batch, stepped):
        return {"grad_norm": 2.0}


def test_a_panel_comes_with_the_first_record_that_tells_of_it():
    view = LiveRun(Plain())
    assert titles(view) == ["loss"]
    view.runner.start()
    assert view.runner.wait(600)
    assert view.runner.state == "finished"
    assert titles(view) == ["loss", "norm of mean gradient"]
    assert view.figure in view.children
    norms = next(t for t in view.figure.plot.data if t.meta == "grad_norm")
    assert list(norms.y) == [2.0, 2.0, 2.0]
    assert {t.meta for t in view.figure.plot.data} == {"loss", "smooth_loss", "grad_norm"}


def test_every_curve_that_is_kept_has_a_panel():
    kept = [curve.key for panel in PANELS for curve in panel.curves]
    assert sorted(kept) == sorted(Curves.NAMES)
    everything = {*Curves.NAMES, "microbatch"}
    assert run_panels(everything) == list(PANELS)
    figure = run_figure("tokens", everything, "nat", 16)
    assert {t.meta for t in figure.data} == set(Curves.NAMES)
