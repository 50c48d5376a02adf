#!/usr/bin/env bash
# Any training on several hosts without a scheduler: one torchrun a host, started over ssh, with a log each. A host that fails
# ends the others; a second start continues from the newest checkpoint, on any number of hosts.
#
#   examples/torchrun_hosts.sh HOST[,HOST...] RUN PROGRAM [FLAG...]
#   examples/torchrun_hosts.sh node1,node2 runs/ict pretrain_ict.py --config examples/ict.yaml --data-path CORPUS
#
# The first host is the meeting point (MASTER_PORT, default 29500). All hosts see this folder and RUN under the same path.
# PROCESSES (default 8) ranks run on each; SSH (default ssh) starts a command on a host.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-8}
source examples/common.sh
need 3 "$@"
IFS=, read -ra hosts <<<"$1"
run=$2
shift 2
mkdir -p "$run/logs"

command=(env "OMP_NUM_THREADS=$OMP_NUM_THREADS" "${PYTHON:-python}" -m torch.distributed.run --nnodes "${#hosts[@]}"
  --nproc-per-node "$PROCESSES" --master-addr "${hosts[0]}" --master-port "${MASTER_PORT:-29500}")
running=()
trap 'kill "${running[@]}" 2>/dev/null || true' EXIT # ssh -tt passes the end on to the host
for rank in "${!hosts[@]}"; do
  words=("${command[@]}" --node-rank "$rank" "$@" --dtype auto --output-dir "$run" --save "$run/checkpoints" --load "$run/checkpoints")
  # shellcheck disable=SC2086
  ${SSH:-ssh -tt} "${hosts[rank]}" "cd $(printf %q "$PWD") && exec ${words[*]@Q}" >>"$run/logs/${hosts[rank]}.log" 2>&1 &
  running+=($!)
done
for _ in "${hosts[@]}"; do
  wait -n || {
    echo "error: a host failed; see $run/logs" >&2
    exit 1
  }
done
