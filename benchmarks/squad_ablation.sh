#!/usr/bin/env bash
# What the fine-tuning on SQuAD owes to each setting: thirty steps each from all-MiniLM-L6-v2 on the same seed, then answer
# recall over the 3,526 passages of the dev articles (every fifth question).
#
#   benchmarks/squad_ablation.sh OUTPUT     OUTPUT as examples/retriever_real_data.sh left it; DATA as there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$1 data=${DATA:-../shared/data}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

dev=$out/squad-dev
if [[ ! -e $dev ]]; then
  python tools/convert_dataset.py --format squad --input "$data/squad/dev-v1.1.json.gz" --output "$dev"
  python tools/build_evidence.py --input "$dev/psgs_w100.tsv" --output "$dev/evidence" \
    --vocab-file "$out/minilm/iter_0000000/vocab.txt"
fi

measure() { # NAME CHECKPOINT
  python tools/embed_evidence.py --evidence "$dev/evidence" --retriever "$2" --output "$out/ablation/$1/embeddings" --dtype auto \
    --micro-batch-size 32
  python tasks/main.py --task retriever-evaluate --evidence "$dev/evidence" --embeddings "$out/ablation/$1/embeddings" \
    --retriever "$2" --dtype auto --questions "$dev/dev-v1.1.qa.csv" --question-stride 5 --topk 1 5 20 100 \
    --output-dir "$out/ablation/$1/evaluation" --no-write-results
}

run() { # NAME FLAGS...
  local name=$1 folder=$out/ablation/$1
  shift
  python tasks/main.py --task retriever-finetune --pretrained-checkpoint "$out/minilm" \
    --train-data "$out/squad/biencoder-train-v1.1.json" --num-hard-negatives 0 --global-batch-size 256 \
    --micro-batch-size 32 --no-gradient-caching --dtype auto --hidden-dropout 0 --attention-dropout 0 --lr 1e-4 \
    --lr-warmup-fraction 0.05 --train-iters 30 --output-dir "$folder" --save "$folder/checkpoints" "$@"
  measure "$name" "$folder/checkpoints"
}

measure zero-shot "$out/minilm"
run bundled --same-title-questions 32 --no-retriever-score-scaling --temperature 0.05
run in-batch-only --same-title-questions 1 --no-retriever-score-scaling --temperature 0.05
run scaling-on --same-title-questions 32 --no-normalize-embeddings --retriever-score-scaling
run scaling-off --same-title-questions 32 --no-normalize-embeddings --no-retriever-score-scaling
for name in in-batch-only scaling-on scaling-off; do
  python tools/compare_runs.py --baseline "$out/ablation/bundled/evaluation" --candidate "$out/ablation/$name/evaluation"
done
