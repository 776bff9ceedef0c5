"""Runs of notebooks: planned from a batch file, executed by papermill, kept in a store.

A notebook calls :func:`save` in its last cell; ``gqc batch run`` executes it over a grid of
parameters; :func:`load` reads the finished runs back as tidy frames.  The run's id is the hash
of the notebook's code, its parameters, the gqc source that it uses and its data, so a finished
run is never repeated and a changed one never confused with the old.

Reading order: :mod:`~gqc_lab.runs.parameters` (what may vary), :mod:`~gqc_lab.runs.plan` (grid to
ids), :mod:`~gqc_lab.runs.store` (layout), :mod:`~gqc_lab.runs.execute` (several at a time),
:mod:`~gqc_lab.runs.launch` (one of them).
"""

from gqc_lab.errors import BadInput
from gqc_lab.runs.loading import Runs, load
from gqc_lab.runs.saving import current_run_dir, save
from gqc_lab.runs.store import CorruptRun

__all__ = ["BadInput", "CorruptRun", "Runs", "current_run_dir", "load", "save"]
