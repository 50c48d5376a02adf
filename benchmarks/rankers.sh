#!/usr/bin/env bash
# What reads question and passage together is worth on SQuAD, over MiniLM fine-tuned with mined negatives: late interaction, an extractive
# reader and a cross-encoder that reorder its first passages, alone and added to its scores, and a dual encoder that learns from late
# interaction. All start from all-MiniLM-L6-v2 and see the same questions with the same two negatives; the cross-encoder starts from an
# extractive reader of other questions, which reads both texts together already.
#
#   benchmarks/rankers.sh OUTPUT
#
# OUTPUT is that of benchmarks/mined_negatives.sh, whose data and runs are used again. Measured over the 3,526 passages of
# SQuAD's dev articles; weights are chosen by other questions about them. SEEDS (default "1 2 3"), READER_STEPS (550); a run that has ended
# is not repeated.
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

settings=(--dtype auto --hidden-dropout 0 --attention-dropout 0 --lr-warmup-fraction 0.05 --no-tensorboard)

run() { # NAME START COMMAND...: a training in a folder of its own
  local run=$out/squad/runs/$1
  once "$run/run_record.json" "${@:3}" --pretrained-checkpoint "$2" "${settings[@]}" --output-dir "$run" --save "$run/checkpoints"
}

dense() { # NAME TRAIN_DATA FLAGS...: a dual encoder, trained and measured
  run "$1" "$out/minilm" python -m megatron_retrieval train retriever --train-data "$2" --num-hard-negatives 2 --lr 1e-4 \
    --train-iters 24 --global-batch-size 64 --micro-batch-size 16 --no-gradient-caching \
    --no-retriever-score-scaling --temperature 0.05 "${@:3}"
  local run=$out/squad/runs/$1
  python tools/embed_evidence.py --evidence "$evidence" --retriever "$run/checkpoints" --output "$run/embeddings" --dtype auto
  measure "$1" "$1" "${asked[@]}" 5
}

measure() { # RESULT RUN FLAGS...: questions over the vectors of the dual encoder RUN
  local run=$out/squad/runs/$2
  once "$out/squad/$1" python tasks/main.py --task retriever-evaluate --evidence "$evidence" --retriever "$run/checkpoints" \
    --embeddings "$run/embeddings" --dtype auto --topk 1 5 20 50 --no-write-results --output-dir "$out/squad/$1" "${@:3}"
}

best_weight() { # RERANKER BASE TOPK WEIGHT...: that with the highest recall at 1 on the questions that choose
  local weight found=()
  for weight in "${@:4}"; do
    measure "choose-$1-$weight" "$2" --questions "$choosing" --rerank "$out/squad/runs/$1/checkpoints" --rerank-topk "$3" \
      --rerank-weight "$weight" >&2
    found+=("$weight=$out/squad/choose-$1-$weight/metrics.json")
  done
  python - "${found[@]}" <<'PYTHON'
import json, sys
pairs = [argument.partition("=")[::2] for argument in sys.argv[1:]]
print(max(pairs, key=lambda pair: json.load(open(pair[1]))["recall@1"])[0])
PYTHON
}

compare() { python tools/compare_runs.py --baseline "$out/squad/$1" --candidate "$out/squad/$2"; }

asked=(--questions "$out/squad-dev/dev-v1.1.qa.csv" --question-stride)
choosing=$out/squad-dev/choosing.qa.csv
once "$choosing" awk -v choosing="$choosing" 'NR % 25 == 2 { print > choosing }' "$out/squad-dev/dev-v1.1.qa.csv"

once "$out/squad-read" python -m megatron_retrieval evaluate retriever --evidence "$out/squad-evidence" --retriever "$out/minilm" --dtype auto \
  --embeddings "$out/squad-embeddings" --questions "$out/squad/train-v1.1.qa.csv" --question-stride 6 --topk 1 5 8 --output-dir "$out/squad-read"
run reader "$out/minilm" python -m megatron_retrieval train extractive --config extractive_small --train-data "$out/squad-read/results.json" \
  --train-iters "${READER_STEPS:-550}" --seed 1

for seed in ${SEEDS:-1 2 3}; do
  base=bm25-and-dense-$seed late=late-$seed cross=cross-$seed
  python tools/embed_evidence.py --evidence "$evidence" --retriever "$out/squad/runs/$base/checkpoints" \
    --output "$out/squad/runs/$base/embeddings" --dtype auto
  measure "$base" "$base" "${asked[@]}" 5

  run "$late" "$out/minilm" python -m megatron_retrieval train late-interaction --train-data "$out/squad-dense.json" --num-hard-negatives 2 \
    --lr 1e-4 --seed "$seed" --train-iters 24 --global-batch-size 64 --micro-batch-size 16
  measure "$late" "$base" "${asked[@]}" 5 --rerank "$out/squad/runs/$late/checkpoints"
  compare "$base" "$late"
  weight=$(best_weight "$late" "$base" 50 0.5 0.7 0.9)
  measure "$late-weighed" "$base" "${asked[@]}" 5 --rerank "$out/squad/runs/$late/checkpoints" --rerank-weight "$weight"
  compare "$base" "$late-weighed"

  measure "$base-10" "$base" "${asked[@]}" 10
  weight=$(best_weight reader "$base" 20 0.1 0.3 0.5) # of the first seed, for all
  measure "reader-weighed-$seed" "$base" "${asked[@]}" 10 --rerank "$out/squad/runs/reader/checkpoints" --rerank-topk 20 --rerank-weight "$weight"
  compare "$base-10" "reader-weighed-$seed"

  run "$cross" "$out/squad/runs/reader/checkpoints" python -m megatron_retrieval train reranker --train-data "$out/squad-dense.json" \
    --num-hard-negatives 2 --lr 1e-4 --seed "$seed" --train-iters 48 --global-batch-size 32 --micro-batch-size 8
  weight=$(best_weight "$cross" "$base" 20 0.1 0.3 0.5)
  measure "$cross-weighed" "$base" "${asked[@]}" 10 --rerank "$out/squad/runs/$cross/checkpoints" --rerank-topk 20 --rerank-weight "$weight"
  compare "$base-10" "$cross-weighed"

  once "$out/squad-scored-$seed.json" python -m megatron_retrieval score --train-data "$out/squad-dense.json" \
    --checkpoint "$out/squad/runs/$late/checkpoints" --output "$out/squad-scored-$seed.json" --dtype auto
  dense "distilled-$seed" "$out/squad-scored-$seed.json" --seed "$seed" --contrastive-loss kl
  compare "$base" "distilled-$seed"
  dense "distilled-labels-$seed" "$out/squad-scored-$seed.json" --seed "$seed" --contrastive-loss kl --label-weight 1
  compare "$base" "distilled-labels-$seed"
done
