#!/usr/bin/env bash
# Train the five folds of a workspace on a Slurm cluster, one GPU each. Five minutes before its time is up a job gets
# SIGUSR1, keeps where it is, and puts itself into the queue again; it goes on there until the fold is trained.
#
#   sbatch examples/slurm_train.sh WORKSPACE [options of umamba train...]      (not --restart: it would begin anew)
#
#SBATCH --job-name=umamba
#SBATCH --array=0-4
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: sbatch $0 WORKSPACE [OPTIONS...]" >&2
    exit 2
fi

code=0
srun umamba train "$@" -f "$SLURM_ARRAY_TASK_ID" || code=$?
if [ "$code" -eq 130 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
