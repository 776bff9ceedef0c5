"""Run a batch on a SLURM cluster: Dask workers are SLURM jobs, one run each at a time.

On the login node, in an environment with ``pip install 'gqc-kit[dask]' dask-jobqueue``, from a
folder that the compute nodes see too::

    python notebooks/batches/slurm.py notebooks/batches/01_gnts_pretraining.paper.yaml \
        --workers 5 --queue gpu --account PROJECT

Interrupted, or out of walltime: repeat the command to continue from the checkpoints.  For PBS, LSF,
SGE or HTCondor, dask-jobqueue has a cluster of that name with the same arguments.
"""

import argparse
import signal
import subprocess
import sys

from dask_jobqueue import SLURMCluster


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("batch", help="batch file (YAML)")
    parser.add_argument("--workers", type=int, default=2, help="SLURM jobs")
    parser.add_argument("--queue", help="SLURM partition")
    parser.add_argument("--account")
    parser.add_argument("--cores", type=int, default=4, help="of each job")
    parser.add_argument("--memory", default="32GB", help="of each job")
    parser.add_argument("--walltime", default="04:00:00", help="of each job")
    parser.add_argument("--gpus", type=int, default=1, help="of each job; 0 for none")
    parser.add_argument("--runs", default="runs", help="run store, on the shared file system")
    chosen = parser.parse_args()

    cluster = SLURMCluster(
        queue=chosen.queue,
        account=chosen.account,
        job_cpu=chosen.cores,
        cores=1,  # Dask's word for runs at a time; `threads:` in the batch file is for the rest
        processes=1,
        memory=chosen.memory,
        walltime=chosen.walltime,
        job_extra_directives=[f"--gres=gpu:{chosen.gpus}"] if chosen.gpus else [],
        worker_extra_args=["--resources", f"GPU={chosen.gpus}"] if chosen.gpus else [],
    )
    with cluster:
        cluster.scale(jobs=chosen.workers)
        command = ["gqc", "batch", "run", chosen.batch, "--runs", chosen.runs]
        command = [*command, "--scheduler", cluster.scheduler_address]
        signal.signal(signal.SIGINT, lambda *_: None)  # the batch hears Ctrl-C too, and decides
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
