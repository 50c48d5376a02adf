#!/usr/bin/env bash
# From nothing to a trained retriever in two minutes on two CPU cores: generate a mini encyclopedia, train a small dual
# encoder from random weights, and measure it before and after on questions about things that training never asked for.
#
#   examples/quickstart.sh [OUTPUT]     default: runs/quickstart
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-runs/quickstart}
python=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # so small a model gains little from threads, and they stall where cores are shared
if [[ -e $out ]]; then
  mv "$out" "$out.$(date +%Y%m%d-%H%M%S)" # earlier runs are kept
fi
started=$(date +%s)

step() { printf '\n== %s\n' "$1"; }

train() { # NAME [FLAGS]: leaves a checkpoint in $out/NAME/checkpoint
  local name=$1
  shift
  "$python" tasks/main.py --task retriever-finetune --config examples/quickstart.yaml \
    --train-data "$out/data/biencoder-train.json" --vocab-file "$out/data/vocab.txt" \
    --output-dir "$out/$name" --save "$out/$name/checkpoint" --log-interval 40 --no-tensorboard "$@"
}

evaluate() { # NAME: embeds the evidence with that checkpoint and asks the held-out questions
  "$python" tools/embed_evidence.py --evidence "$out/evidence" --load "$out/$1/checkpoint" \
    --output "$out/$1/embeddings" --micro-batch-size 64
  "$python" tasks/main.py --task retriever-evaluate --evidence "$out/evidence" --embeddings "$out/$1/embeddings" \
    --load "$out/$1/checkpoint" --questions "$out/data/biencoder-dev.json" --topk 1 5 20 --output-dir "$out/$1/evaluation"
}

step "1/6 generate the encyclopedia"
"$python" tools/make_encyclopedia.py --output "$out/data"

step "2/6 build the evidence"
"$python" tools/build_evidence.py --input "$out/data/psgs_w100.tsv" --output "$out/evidence" --vocab-file "$out/data/vocab.txt"

step "3/6 the untrained encoder" # one step at learning rate 0 leaves the random weights as a checkpoint
train untrained --train-iters 1 --lr 0
evaluate untrained

step "4/6 train"
train trained

step "5/6 the trained encoder"
evaluate trained
question=$(tail -n 1 "$out/data/dev.qa.csv" | cut -f 1)
printf '\nquestion: %s\n\n' "$question"
"$python" -m megatron_retrieval search "$question" --evidence "$out/evidence" --embeddings "$out/trained/embeddings" \
  --load "$out/trained/checkpoint" --topk 2

step "6/6 before and after"
"$python" examples/quickstart_report.py --untrained "$out/untrained/evaluation" --trained "$out/trained/evaluation" \
  --started "$started" --output "$out/metrics.json"
