#!/usr/bin/env bash
#SBATCH --job-name=retriever
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#
# Train on many nodes, one process a GPU. Two minutes before the time limit SLURM sends USR1: the run saves a checkpoint
# and ends, and the job puts itself back into the queue to continue, on any number of nodes. A job that failed (a node, the
# network) goes back as well, three times at most in all its restarts.
#
#   sbatch [--nodes N] examples/slurm_train.sh RUN tasks/main.py --task retriever-finetune --config examples/dpr.yaml \
#     --pretrained-checkpoint CHECKPOINT --train-data FILE...
#   sbatch [--nodes N] examples/slurm_train.sh RUN pretrain_ict.py --config examples/ict.yaml \
#     --pretrained-checkpoint CHECKPOINT --data-path CORPUS
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this script with sbatch from the root of the repository}"
run=$1
shift

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500
# without torchrun between them, the signal reaches the training processes themselves
# shellcheck disable=SC2016
status=0
srun --kill-on-bad-exit=1 bash -c \
  'export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID \
     LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES)); exec python "$@"' bash \
  "$@" --dtype auto --output-dir "$run" --save "$run/checkpoints" --load "$run/checkpoints" || status=$?

if [[ $status -ne 0 && ${SLURM_RESTART_COUNT:-0} -ge 3 ]]; then
  echo "error: the job has failed and was restarted ${SLURM_RESTART_COUNT} times; see the log of this job." >&2
  exit "$status"
fi
if [[ $status -ne 0 ]] || grep -q '"finished": false' "$run/run_record.json"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
