"""Reproducible experiments on top of the core: data, models, the loop, and what drives it.

from gqc.lab import track
from gqc.lab.experiments import pretraining

experiment = pretraining.build(pretraining.config("smoke", method="gnts"))
for record in track(experiment):
    ...
experiment.history, experiment.summary()
"""

from gqc.lab.controls import Control, Controls
from gqc.lab.experiment import Experiment
from gqc.lab.track import track

__all__ = ["Control", "Controls", "Experiment", "track"]
