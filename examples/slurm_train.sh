#!/usr/bin/env bash
#SBATCH --job-name=retriever
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Train on many nodes, one process a GPU. Two minutes before the time limit SLURM sends USR1: the run saves a checkpoint
# and ends, and the job puts itself back into the queue to continue, on any number of nodes. So does a job that failed; SLURM
# itself requeues one whose node died. A job that fails three times without a new checkpoint between is held, for a person to
# look at RUN/logs (a file a rank) and release it: scontrol release JOB.
#
#   sbatch [--nodes N] examples/slurm_train.sh RUN tasks/main.py --task retriever-finetune --config examples/dpr.yaml \
#     --pretrained-checkpoint CHECKPOINT --train-data FILE...
#   sbatch [--nodes N] examples/slurm_train.sh RUN pretrain_ict.py --config examples/ict.yaml \
#     --pretrained-checkpoint CHECKPOINT --data-path CORPUS
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this script with sbatch from the root of the repository}"
run=$1
shift
mkdir -p "$run/logs"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node have different ports
status=0
# without torchrun between them, the signal reaches the training processes themselves
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 --open-mode=append --output="$run/logs/job-%j-rank-%t.log" bash -c \
  'export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID \
     LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES)); exec python "$@"' bash \
  "$@" --dtype auto --output-dir "$run" --save "$run/checkpoints" --load "$run/checkpoints" || status=$?

if [[ $status -ne 0 ]]; then
  # a line a failure: the newest checkpoint when it happened
  newest=$(cat "$run/checkpoints/latest_checkpointed_iteration.txt" 2>/dev/null || echo none)
  echo "$newest" >>"$run/logs/failures"
  if [[ $(tail -n 3 "$run/logs/failures" | grep -cxF "$newest") -ge 3 ]]; then
    echo "error: the job failed three times after checkpoint '$newest' and is held; see $run/logs, then: scontrol release $SLURM_JOB_ID" >&2
    exec scontrol requeuehold "$SLURM_JOB_ID"
  fi
  echo "the job failed with status $status after checkpoint '$newest' and is started again; see $run/logs" >&2
  scontrol requeue "$SLURM_JOB_ID"
elif grep -q '"finished": false' "$run/run_record.json"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
