#!/usr/bin/env bash
# Joint Top-k, whose decoder is biased by the retriever's scores and trains the retriever through them, against FiD, which reads
# the same passages without scores: on the mini encyclopedia, three seeds each, from the same retriever and the same reader.
#
#   benchmarks/encyclopedia_joint.sh QUICKSTART OUTPUT
#
# QUICKSTART is the output folder of examples/quickstart.sh. The reader, an encoder-decoder out of the quickstart's BERT, first
# learns to write the answer out of one passage. A run that has ended is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
start=$1 out=$2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
seeds=(1 2 3)
lengths=(--question-seq-length 32 --reader-seq-length 128 --max-answer-length 12)

[[ -e $out/reader/run_record.json ]] || python tasks/main.py --task fusion-finetune --num-passages 1 "${lengths[@]}" \
  --pretrained-checkpoint "$start/reader/checkpoint" --train-data "$start/finetuned/train-evaluation/results.json" \
  --valid-data "$start/finetuned/evaluation/results.json" --max-valid-questions 200 --eval-interval 200 \
  --global-batch-size 64 --micro-batch-size 16 --encode-batch-size 16 --lr 1e-3 --lr-warmup-iters 100 --weight-decay 0.01 \
  --train-iters 1000 --no-tensorboard --output-dir "$out/reader" --save "$out/reader/checkpoints"

train() { # NAME SEED FLAGS...
  local run=$out/$1-$2 seed=$2
  shift 2
  [[ -e $run/run_record.json ]] || torchrun --standalone --nproc-per-node "${PROCESSES:-2}" tasks/main.py \
    --task end-to-end-finetune --config examples/quickstart_end_to_end.yaml --evidence "$start/evidence" \
    --retriever "$start/ict/checkpoint" --reader "$out/reader/checkpoints" "${lengths[@]}" --encode-batch-size 16 \
    --train-data "$start/data/train.qa.csv" --valid-data "$start/data/dev.qa.csv" --eval-iters 1 --eval-interval 1000 \
    --train-iters 150 --seed "$seed" --no-tensorboard --output-dir "$run" "$@"
}

for seed in "${seeds[@]}"; do
  train fid "$seed" --objective fid --index-refresh-interval None
  train joint-top-k "$seed" --objective joint-topk --index-refresh-interval 25
done
runs=()
for name in fid joint-top-k; do
  for seed in "${seeds[@]}"; do
    runs+=("$out/$name-$seed")
  done
done
python benchmarks/seed_table.py --runs "${runs[@]}"
