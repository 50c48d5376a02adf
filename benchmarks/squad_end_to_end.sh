#!/usr/bin/env bash
# Retriever and reader together on SQuAD's 34,627 passages, from questions and answers alone: all-MiniLM-L6-v2 as published, and an extractive
# reader from the same weights, learn with both encoders frozen, with the encoder of questions trained, and with both trained and a new index
# after half of the steps and at the end. Each answers from the best five passages, alone and with BM25 in the mix.
#
#   benchmarks/squad_end_to_end.sh OUTPUT
#
# OUTPUT is that of examples/retriever_real_data.sh (UNTIL=squad-zero is enough): minilm/, squad/, squad-evidence/, squad-evidence-bm25/,
# embeddings/squad-zero and results/squad-zero are read. STEPS (160, an even number), READER_STEPS (550), SEED (1), LR (5e-5); OBJECTIVE is
# individual-topk (the default) or emdr2, whose frozen row learns by fid. RETRIEVER, VECTORS and READER name other starts, NAME the folder of what
# comes of them. What is there is not repeated, an interrupted run continues.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$1 steps=${STEPS:-160} seed=${SEED:-1} objective=${OBJECTIVE:-individual-topk}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
root=$out/squad-end-to-end-${NAME:-$objective-$seed}
retriever=${RETRIEVER:-$out/minilm} vectors=${VECTORS:-$out/embeddings/squad-zero} reader=${READER:-$out/extractive-zero/checkpoints}
program=(python -m megatron_retrieval)
searched=(--dtype auto --evidence "$out/squad-evidence")

once() { # PATH COMMAND...: run the command unless the path is there
  local path=$1
  shift
  [[ -e $path ]] || "$@"
}

train() { # NAME FLAGS...
  "${program[@]}" train end-to-end --objective "$objective" "${searched[@]}" --embeddings "$vectors" --retriever "$retriever" \
    --reader "$reader" --separate-encoders --train-data "$out/squad/train-v1.1.qa.csv" --question-stride 27 \
    --no-retriever-score-scaling --temperature 0.05 --num-passages 5 --max-answer-length 30 --global-batch-size 16 --micro-batch-size 4 \
    --encode-batch-size 16 --train-iters "$steps" --lr "${LR:-5e-5}" --lr-warmup-fraction 0.05 --weight-decay 0.01 --hidden-dropout 0 \
    --attention-dropout 0 --seed "$seed" --save-interval 40 --keep-last 1 --output-dir "$root/$1" --save "$root/$1/checkpoints" \
    --load "$root/$1/checkpoints" "${@:2}"
}

measure() { # NAME RETRIEVER FLAGS...: recall, and answers without and with BM25; the flags say what is searched
  local asked=("${searched[@]}" --questions "$out/squad/dev-v1.1.qa.csv" --question-stride 5 --retriever "$2" "${@:3}")
  once "$root/results/$1-recall" "${program[@]}" evaluate retriever "${asked[@]}" --topk 1 5 20 100 --no-write-results \
    --output-dir "$root/results/$1-recall"
  local reading=(evaluate reader --reader "$root/$1/checkpoints/reader" "${asked[@]}" --num-passages 5 --max-answer-length 30)
  once "$root/results/$1" "${program[@]}" "${reading[@]}" --output-dir "$root/results/$1"
  once "$root/results/$1-bm25" "${program[@]}" "${reading[@]}" --bm25-index "$out/squad-evidence-bm25" --output-dir "$root/results/$1-bm25"
}

if [[ -z ${READER:-} ]]; then
  once "$out/results/squad-zero-train" "${program[@]}" evaluate retriever "${searched[@]}" --retriever "$out/minilm" --embeddings "$vectors" \
    --questions "$out/squad/train-v1.1.qa.csv" --question-stride 2 --topk 1 5 8 --output-dir "$out/results/squad-zero-train"
  "${program[@]}" train extractive --config extractive_small --dtype auto --pretrained-checkpoint "$out/minilm" --seed 1 \
    --train-data "$out/results/squad-zero-train/results.json" --valid-data "$out/results/squad-zero/results.json" --max-valid-questions 100 \
    --train-iters "${READER_STEPS:-550}" --eval-interval 275 --save-interval 50 --keep-last 1 --output-dir "$out/extractive-zero" \
    --save "$out/extractive-zero/checkpoints" --load "$out/extractive-zero/checkpoints"
fi

if [[ $objective == individual-topk ]]; then
  train frozen --freeze-query-encoder --freeze-passage-encoder
else
  train frozen --objective fid
fi
measure frozen "$retriever" --embeddings "$vectors"
train query --freeze-passage-encoder
measure query "$root/query/checkpoints/retriever" --embeddings "$vectors" --embedded-by "$retriever"
train both --index-refresh-interval "$((steps / 2))" --index-refresh-mode in-place
printf -v last %07d "$steps" # the version that the last step has made
measure both "$root/both/index/snapshots/iter_$last" --embeddings "$root/both/index/version-$last"
for name in query both; do
  python tools/compare_runs.py --baseline "$root/results/frozen" --candidate "$root/results/$name"
  python tools/compare_runs.py --baseline "$root/results/frozen-bm25" --candidate "$root/results/$name-bm25"
done
