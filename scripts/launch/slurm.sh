#!/bin/bash
# Trains on several nodes under SLURM: sbatch scripts/launch/slurm.sh train-prior RECIPE --out FOLDER
#
# FOLDER is on a file system that all nodes share. Before the time is up, SLURM sends SIGTERM: a checkpoint is saved at
# the end of the step, and the same command continues from it, on any number of nodes. Step and checkpoint together have
# 30 seconds, after which torch's launcher kills what still runs; then the run continues from the checkpoint before.
# A node that does not come is waited for WAIT seconds: the launcher's own limit is 15 minutes, without a word.
#SBATCH --job-name=tessera
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
set -euo pipefail

CONFIG=${CONFIG:-scripts/launch/fsdp2.yaml}   # or scripts/launch/ddp.yaml
GPUS_PER_NODE=${SLURM_GPUS_ON_NODE:-8}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export CONFIG HEAD WAIT=${WAIT:-300} PORT=${PORT:-29500} N_PROCESSES=$((SLURM_NNODES * GPUS_PER_NODE))

# SLURM_NODEID differs from node to node, so that it is read there.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file "$CONFIG" \
    --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" --num_processes "$N_PROCESSES" \
    --main_process_ip "$HEAD" --main_process_port "$PORT" --rdzv_conf "timeout=$WAIT" \
    -m pipeline.cli "$@"' tessera "$@"
