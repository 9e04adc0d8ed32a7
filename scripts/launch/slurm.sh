#!/bin/bash
# Trains under Slurm, one task for each GPU:
#
#   sbatch scripts/launch/slurm.sh run RECIPE --out FOLDER
#   sbatch --nodes=1 --ntasks-per-node=2 --gpus-per-node=0 scripts/launch/slurm.sh train-tokenizer RECIPE --out FOLDER
#   SHARDED=1 sbatch scripts/launch/slurm.sh train-prior FOLDER      # shares the prior's weights (FSDP2)
#
# FOLDER is on a disk that all nodes share. Two minutes before the time is up, Slurm sends SIGTERM: a checkpoint is saved
# at the end of the step, and the job is queued again and continues. So is a job that a node's failure or another job
# has ended; then it continues from the last checkpoint. scancel ends it for good.
#SBATCH --job-name=tessera
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=${PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export MASTER_ADDR MASTER_PORT WORLD_SIZE=$SLURM_NTASKS TQDM_MININTERVAL=${TQDM_MININTERVAL:-60}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((${SLURM_CPUS_PER_TASK:-1} > 4 ? 4 : ${SLURM_CPUS_PER_TASK:-1}))}
if [[ -n ${SHARDED:-} ]]; then
    export ACCELERATE_USE_FSDP=true FSDP_VERSION=2
fi

cancelled=
trap 'cancelled=yes' TERM   # scancel signals this script too, the end of the time only the tasks
# The number of a task differs from task to task, so that it is read there.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec tessera "$@"' tessera "$@"
status=$?
if [[ $status == 143 && -z $cancelled && ${SLURM_RESTART_COUNT:-0} -lt ${MAX_RESTARTS:-100} ]]; then
    echo "the time is up: the job is queued again and continues from its checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
