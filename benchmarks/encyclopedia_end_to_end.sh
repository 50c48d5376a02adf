#!/usr/bin/env bash
# What training end to end adds, on the mini encyclopedia, three seeds each: the retriever frozen, its query encoder trained, both
# encoders trained with the index of the start, and with an index that follows. Individual Top-k, from the quickstart's retriever
# that has seen no question (ICT) and its reader, from questions and answers alone.
#
#   benchmarks/encyclopedia_end_to_end.sh QUICKSTART OUTPUT
#
# QUICKSTART is the output folder of examples/quickstart.sh. A run that has ended is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
start=$1 out=$2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
seeds=(1 2 3)

train() { # NAME SEED FLAGS...
  local run=$out/$1-$2 seed=$2
  shift 2
  [[ -e $run/run_record.json ]] || torchrun --standalone --nproc-per-node "${PROCESSES:-2}" tasks/main.py --task end-to-end-finetune \
    --config examples/quickstart_end_to_end.yaml --evidence "$start/evidence" \
    --retriever "$start/ict/checkpoint" --reader "$start/reader/checkpoint" --separate-encoders \
    --train-data "$start/data/train.qa.csv" --valid-data "$start/data/dev.qa.csv" --eval-iters 1 --eval-interval 1000 \
    --train-iters 150 --seed "$seed" --no-tensorboard --output-dir "$run" "$@"
}

for seed in "${seeds[@]}"; do
  train frozen "$seed" --freeze-query-encoder --freeze-passage-encoder --index-refresh-interval None
  train query-encoder "$seed" --freeze-passage-encoder --index-refresh-interval None
  train both-never-refreshed "$seed" --index-refresh-interval None
  train both-refreshed "$seed" --index-refresh-interval 25
done
names=(frozen query-encoder both-never-refreshed both-refreshed)
runs=()
for name in "${names[@]}"; do
  for seed in "${seeds[@]}"; do
    runs+=("$out/$name-$seed")
  done
done
python benchmarks/seed_table.py --runs "${runs[@]}"
