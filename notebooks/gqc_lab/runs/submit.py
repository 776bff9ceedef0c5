"""A SLURM job array for a batch: each job executes a share of the runs, and saves at the end."""

from __future__ import annotations

import shlex
import sys
from importlib.resources import files
from pathlib import Path
from string import Template


def array_script(
    file: Path, runs: Path, num_jobs: int, threads: int | None, jobs: int, options: list[str]
) -> str:
    """Return the script for ``sbatch``.

    Args:
        file: the batch file.
        runs: the run store, on a file system that all nodes see.
        num_jobs: jobs of the array.
        threads: of each run.
        jobs: runs at a time in each job.
        options: further options of ``sbatch``, such as ``--time=4:00:00``.
    """
    command = [sys.executable, "-c", "from gqc_lab.cli import main; main()", "batch", "run"]
    command += [str(file.resolve()), "--runs", str(runs.absolute()), "--jobs", str(jobs)]
    template = files("gqc_lab.runs").joinpath("templates", "array.sh.txt")
    return Template(template.read_text(encoding="utf-8")).substitute(
        name=shlex.quote(file.stem),
        num_jobs=num_jobs,
        num_cores=(threads or 1) * jobs,
        options="".join(f"#SBATCH {each}\n" for each in options),
        folder=shlex.quote(str(Path.cwd())),
        command=shlex.join(command),
    )
