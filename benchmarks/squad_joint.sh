#!/usr/bin/env bash
# Joint Top-k against FiD on SQuAD's 34,627 passages: both start from all-MiniLM-L6-v2 as published and a fusion reader that has read one passage
# at a time, and learn from the same questions and answers; FiD keeps the retriever, Joint Top-k trains its encoder of questions as well.
#
#   benchmarks/squad_joint.sh OUTPUT
#
# OUTPUT is that of benchmarks/squad_end_to_end.sh, whose results over SQuAD's train questions are read. SEEDS (default "1 2 3"), STEPS (60),
# READER_STEPS (900); what is there is not repeated, an interrupted run continues.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$1 root=$1/squad-joint steps=${STEPS:-60}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
program=(python -m megatron_retrieval)
searched=(--dtype auto --evidence "$out/squad-evidence" --embeddings "$out/embeddings/squad-zero")

"${program[@]}" train fusion --config fusion_small --dtype auto --pretrained-checkpoint "$out/minilm" --num-passages 1 --micro-batch-size 16 \
  --train-iters "${READER_STEPS:-900}" --eval-interval 300 --lr 2e-4 --seed 1 --train-data "$out/results/squad-zero-train/results.json" \
  --valid-data "$out/results/squad-zero/results.json" --max-valid-questions 100 --save-interval 50 --keep-last 1 --output-dir "$root/reader" \
  --save "$root/reader/checkpoints" --load "$root/reader/checkpoints"

learn_and_measure() { # NAME RETRIEVER OBJECTIVE SEED FLAGS...: RETRIEVER is what searches afterwards
  local run=$root/$1 named=()
  [[ $2 == "$out/minilm" ]] || named=(--embedded-by "$out/minilm")
  [[ -e $run/answers ]] && return
  "${program[@]}" train end-to-end --objective "$3" "${searched[@]}" --retriever "$out/minilm" --reader "$root/reader/checkpoints" \
    --separate-encoders --train-data "$out/squad/train-v1.1.qa.csv" --question-stride 27 --no-retriever-score-scaling --temperature 0.05 \
    --num-passages 5 --max-answer-length 30 --global-batch-size 16 --micro-batch-size 4 --encode-batch-size 16 --train-iters "$steps" \
    --lr 1e-4 --retriever-lr 5e-5 --lr-warmup-fraction 0.05 --weight-decay 0.01 --hidden-dropout 0 --attention-dropout 0 --seed "$4" \
    --save-interval 50 --keep-last 1 --output-dir "$run" --save "$run/checkpoints" --load "$run/checkpoints" "${@:5}"
  "${program[@]}" evaluate reader "${searched[@]}" --reader "$run/checkpoints/reader" --retriever "$2" "${named[@]}" --num-passages 5 \
    --max-answer-length 30 --questions "$out/squad/dev-v1.1.qa.csv" --question-stride 10 --micro-batch-size 32 --output-dir "$run/answers"
}

for seed in ${SEEDS:-1 2 3}; do
  learn_and_measure "fid-$seed" "$out/minilm" fid "$seed"
  learn_and_measure "joint-$seed" "$root/joint-$seed/checkpoints/retriever" joint-topk "$seed" --freeze-passage-encoder
  python tools/compare_runs.py --baseline "$root/fid-$seed/answers" --candidate "$root/joint-$seed/answers"
done
