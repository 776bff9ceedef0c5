"""A SLURM job array for a batch: each job executes a share of the runs, and saves at the end."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from string import Template

_SCRIPT = Template("""\
#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --array=1-$num_jobs
#SBATCH --cpus-per-task=$num_cores
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
$options# Two minutes before the time limit SLURM sends USR1: runs save, and the job queues again.
# At TERM (preemption) they save too; then SLURM queues the job again itself.
cd $folder || exit 2
$command --shard "$$SLURM_ARRAY_TASK_ID/$num_jobs" &
job=$$!
trap 'again=yes; kill -USR1 $$job' USR1
trap 'kill -TERM $$job' TERM
while wait $$job; code=$$?; kill -0 $$job 2>/dev/null; do :; done  # a signal ends `wait` early
if [ -n "$$again" ] && [ $$code -ge 128 ]; then
    scontrol requeue "$${SLURM_ARRAY_JOB_ID}_$$SLURM_ARRAY_TASK_ID"
fi
exit $$code
""")


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
    return _SCRIPT.substitute(
        name=shlex.quote(file.stem),
        num_jobs=num_jobs,
        num_cores=(threads or 1) * jobs,
        options="".join(f"#SBATCH {each}\n" for each in options),
        folder=shlex.quote(str(Path.cwd())),
        command=shlex.join(command),
    )
