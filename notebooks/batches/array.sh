#!/bin/bash
# A SLURM job array, each job of which executes its share of a batch:
# (from 1 to their number, without gaps):
#   sbatch --array=1-8 --cpus-per-task=2 notebooks/batches/array.sh BATCH.yaml --jobs 2
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Two minutes before the time limit SLURM sends USR1: runs save, and the job queues again.
# At TERM (preemption) they save too; then SLURM queues the job again itself.
gqc batch run "$@" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" &
job=$!
trap 'again=yes; kill -USR1 $job' USR1
trap 'kill -TERM $job' TERM
while wait $job; code=$?; kill -0 $job 2>/dev/null; do :; done  # a signal ends `wait` early
if [ -n "$again" ] && [ $code -ge 128 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit $code
