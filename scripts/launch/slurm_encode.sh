#!/bin/bash
# Encodes the images of a run under Slurm, in independent jobs; as many as the array has:
#
#   sbatch --array=0-15 scripts/launch/slurm_encode.sh FOLDER
#   sbatch --array=0-3 --gpus-per-task=0 scripts/launch/slurm_encode.sh FOLDER
#
# FOLDER is a run with its tokenizer, on a disk that all nodes share. Each job begins with its part, then helps with the
# rest; the last one to end finishes the dataset. A job that was ended is queued again and writes what is missing.
#SBATCH --job-name=tessera-encode
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

export TQDM_MININTERVAL=${TQDM_MININTERVAL:-60}   # seconds between lines of a progress bar
cancelled=
trap 'cancelled=yes' TERM   # scancel signals this script too, the end of the time only the task
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    tessera encode "$@" --part "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT"
status=$?
if [[ $status == 143 && -z $cancelled && ${SLURM_RESTART_COUNT:-0} -lt ${MAX_RESTARTS:-100} ]]; then
    echo "the time is up: the job is queued again"
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
