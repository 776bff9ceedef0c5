"""Runs of notebooks: planned from a batch file, executed by papermill, kept in a store.

A notebook calls :func:`save` in its last cell; ``gqc batch run`` executes it over a grid of
parameters; :func:`load` reads the finished runs back as tidy frames.  The run's id is the hash
of the notebook's code, its parameters, the gqc source that it uses and its data, so a finished
run is never repeated and a changed one never confused with the old.

Reading order: :mod:`~gqc.lab.runs.parameters` (what may vary), :mod:`~gqc.lab.runs.plan` (grid to
ids), :mod:`~gqc.lab.runs.store` (layout), :mod:`~gqc.lab.runs.execute` (several at a time),
:mod:`~gqc.lab.runs.launch` (one of them).
"""

from gqc.lab.runs.loading import Runs, load
from gqc.lab.runs.parameters import BadInput
from gqc.lab.runs.saving import current_run_dir, save
from gqc.lab.runs.store import CorruptRun

__all__ = ["BadInput", "CorruptRun", "Runs", "current_run_dir", "load", "save"]
