#!/usr/bin/env bash
# Readers on real questions: SQuAD, with the passages that the retriever of retriever_real_data.sh finds among 34,627. An
# extractive reader and a fusion reader, both from all-MiniLM-L6-v2, read the best 5 and the best 20; exact match and F1 on
# every fifth dev question. Hours on two CPU cores, minutes on a GPU; a stage whose output is there is not repeated, an
# interrupted one continues. benchmarks/records holds what came out.
#
#   examples/readers_real_data.sh OUTPUT
#
# OUTPUT is that of retriever_real_data.sh: squad/, squad-evidence/, minilm/, squad-run/ and embeddings/squad-tuned are read.
# PROCESSES (default 2) ranks share the work and change nothing in the result.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-2}
source examples/common.sh
need 1 "$@"
out=$1

retrieve() { # NAME FLAGS...
  local name=$1
  shift
  once "$out/results/$name" parallel tasks/main.py --task retriever-evaluate --dtype auto \
    --evidence "$out/squad-evidence" --embeddings "$out/embeddings/squad-tuned" --retriever "$out/squad-run/checkpoints" \
    --output-dir "$out/results/$name" "$@"
}

train() { # NAME PROGRAM FLAGS...: continues an interrupted run, and does nothing for a finished one
  local name=$1
  shift
  parallel "$@" --dtype auto --save-interval 50 --keep-last 1 --train-data "$out/results/squad-train/results.json" \
    --valid-data "$out/results/squad-tuned/results.json" --max-valid-questions 200 \
    --output-dir "$out/$name" --save "$out/$name/checkpoints" --load "$out/$name/checkpoints"
}

measure() { # NAME FLAGS...: reads the best 5 and the best 20 passages
  local name=$1 depth
  shift
  for depth in 5 20; do
    once "$out/$name/top-$depth" parallel tasks/main.py --task qa-evaluate --reader "$out/$name/checkpoints" --dtype auto \
      --questions "$out/results/squad-tuned/results.json" --num-passages "$depth" --max-answer-length 30 \
      --output-dir "$out/$name/top-$depth" "$@"
    result "$name/top-$depth"
  done
}

retrieve squad-train --questions "$out/squad/train-v1.1.qa.csv" --question-stride 2 --topk 1 5 8
retrieve squad-tuned --questions "$out/squad/dev-v1.1.qa.csv" --question-stride 5 --topk 1 5 20 100

train extractive tasks/main.py --task extractive-finetune --config examples/extractive_small.yaml \
  --pretrained-checkpoint "$out/minilm"
measure extractive

# to copy from what is read is what takes long to learn: first from the passage that the retriever puts first, then from five
fusion=(tasks/main.py --task fusion-finetune --config examples/fusion_small.yaml)
train fusion-one "${fusion[@]}" --pretrained-checkpoint "$out/minilm" --num-passages 1 --micro-batch-size 16 \
  --train-iters 1400 --eval-interval 280 --lr 2e-4
train fusion "${fusion[@]}" --pretrained-checkpoint "$out/fusion-one/checkpoints" --num-passages 5 --micro-batch-size 4 \
  --train-iters 100 --eval-interval 50 --lr 1e-4
measure fusion
