#!/usr/bin/env bash
# What reads question and passage together is worth on SQuAD, over MiniLM fine-tuned with mined negatives: late interaction and a
# cross-encoder that reorder its first 50 passages, a dual encoder that learns from the cross-encoder's scores, and hard negatives that are
# mined again while it learns (ANCE). All start from all-MiniLM-L6-v2 and see the same questions with the same two negatives.
#
#   benchmarks/rankers.sh OUTPUT
#
# OUTPUT is that of benchmarks/mined_negatives.sh, whose data and runs are used again. Measured over the 3,526 passages of
# SQuAD's dev articles. SEEDS (default "1 2 3"); a run that has ended is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
evidence=$out/squad-dev-evidence

once() { # PATH COMMAND...: run the command unless the path is there
  local path=$1
  shift
  [[ -e $path ]] || "$@"
}

settings=(--pretrained-checkpoint "$out/minilm" --dtype auto --num-hard-negatives 2 --hidden-dropout 0 --attention-dropout 0 --lr 1e-4
  --lr-warmup-fraction 0.05 --no-tensorboard)

run() { # NAME COMMAND...: a training from MiniLM, in a folder of its own
  local run=$out/squad/runs/$1
  once "$run/run_record.json" "${@:2}" "${settings[@]}" --output-dir "$run" --save "$run/checkpoints"
}

dense() { # NAME TRAIN_DATA FLAGS...: a dual encoder, trained and measured
  run "$1" python -m megatron_retrieval train retriever --train-data "$2" --train-iters 24 --global-batch-size 64 --micro-batch-size 16 \
    --no-gradient-caching --no-retriever-score-scaling --temperature 0.05 "${@:3}"
  local run=$out/squad/runs/$1
  python tools/embed_evidence.py --evidence "$evidence" --retriever "$run/checkpoints" --output "$run/embeddings" --dtype auto
  measure "$1" "$1" 5
}

measure() { # RESULT RUN STRIDE FLAGS...: every STRIDE-th question over the vectors of the dual encoder RUN
  local run=$out/squad/runs/$2
  once "$out/squad/$1" python tasks/main.py --task retriever-evaluate --evidence "$evidence" --retriever "$run/checkpoints" \
    --embeddings "$run/embeddings" --dtype auto --questions "$out/squad-dev/dev-v1.1.qa.csv" --question-stride "$3" \
    --topk 1 5 20 50 --no-write-results --output-dir "$out/squad/$1" "${@:4}"
}

compare() { python tools/compare_runs.py --baseline "$out/squad/$1" --candidate "$out/squad/$2"; }

for seed in ${SEEDS:-1 2 3}; do
  base=bm25-and-dense-$seed
  python tools/embed_evidence.py --evidence "$evidence" --retriever "$out/squad/runs/$base/checkpoints" \
    --output "$out/squad/runs/$base/embeddings" --dtype auto

  run "late-$seed" python -m megatron_retrieval train late-interaction --train-data "$out/squad-dense.json" --seed "$seed" \
    --train-iters 24 --global-batch-size 64 --micro-batch-size 16
  measure "late-$seed" "$base" 5 --rerank "$out/squad/runs/late-$seed/checkpoints"
  compare "$base" "late-$seed"

  run "cross-$seed" python -m megatron_retrieval train reranker --train-data "$out/squad-dense.json" --seed "$seed" \
    --train-iters 48 --global-batch-size 32 --micro-batch-size 8
  measure "cross-$seed" "$base" 20 --rerank "$out/squad/runs/cross-$seed/checkpoints"
  measure "cross-base-$seed" "$base" 20
  compare "cross-base-$seed" "cross-$seed"

  once "$out/squad-scored-$seed.json" python -m megatron_retrieval score --train-data "$out/squad-dense.json" \
    --checkpoint "$out/squad/runs/cross-$seed/checkpoints" --output "$out/squad-scored-$seed.json" --dtype auto
  dense "distilled-$seed" "$out/squad-scored-$seed.json" --seed "$seed" --contrastive-loss kl
  compare "$base" "distilled-$seed"

  dense "ance-$seed" "$out/squad-dense.json" --seed "$seed" --evidence "$out/squad-evidence" --mined-depth 10 --index-refresh-interval 8
  compare "$base" "ance-$seed"
done
