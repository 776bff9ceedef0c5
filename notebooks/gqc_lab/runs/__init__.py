"""Runs of notebooks: planned from a batch file, executed by papermill, kept in a store.

A notebook calls :func:`save` in its last cell; ``gqc batch run`` executes it over a grid of
parameters; :func:`load` reads the finished runs back as tidy frames.  The run's id is the hash
of the notebook's code, its parameters, the gqc source that it uses and its data, so a finished
run is never repeated and a changed one never confused with the old.

Reading order: :mod:`~gqc_lab.runs.parameters` (what may vary), :mod:`~gqc_lab.runs.plan` (grid to
ids), :mod:`~gqc_lab.runs.store` (layout), :mod:`~gqc_lab.runs.batch` (several at a time),
:mod:`~gqc_lab.runs.execute` (one of them).
"""

from gqc_lab.errors import BadInput
from gqc_lab.runs.results import Runs, current_run_dir, load, save
from gqc_lab.runs.store import CorruptRun

__all__ = ["BadInput", "CorruptRun", "Runs", "current_run_dir", "load", "save"]
