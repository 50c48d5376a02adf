#!/usr/bin/env bash
# What an index that follows the encoder costs those that train: the same end-to-end training on the mini encyclopedia without
# refreshing, with a rank of its own that embeds all the time, and with a process in the background that does, in turns. Every
# passage is there eight times, so that a version takes as long as some forty steps, and nothing is learned (the rate is next to
# zero), so that all runs read the same passages. A step's time is that of LONG steps (120) less that of SHORT (20), over their
# difference: all that happens between steps counts, the start does not. The last run does not refresh, but a stranger embeds
# beside it: what it loses is what any work on the other core costs on this machine.
#
#   benchmarks/refresh_speed.sh QUICKSTART OUTPUT [ROUNDS]
#
# QUICKSTART is the output folder of examples/quickstart.sh. Training takes one core, embedding another.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
start=$1 out=$2 rounds=${3:-2} short=${SHORT:-20} long=${LONG:-120}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$out"

if [[ ! -e $out/evidence ]]; then
  for copy in {1..8}; do
    awk -F '\t' -v OFS='\t' -v copy="$copy" 'NR == 1 { if (copy == 1) print; next } { $1 = copy "-" $1; print }' \
      "$start/data/psgs_w100.tsv"
  done >"$out/psgs_w100.tsv"
  python tools/build_evidence.py --input "$out/psgs_w100.tsv" --output "$out/evidence" --vocab-file "$start/data/vocab.txt"
fi
python tools/embed_evidence.py --evidence "$out/evidence" --retriever "$start/ict/checkpoint" --output "$out/embeddings" --fp32

train() { # NAME STEPS RANKS FLAGS...
  local run=$out/$1-$2 steps=$2 ranks=$3
  shift 3
  torchrun --standalone --nproc-per-node "$ranks" tasks/main.py --task end-to-end-finetune \
    --config examples/quickstart_end_to_end.yaml --evidence "$out/evidence" --embeddings "$out/embeddings" \
    --retriever "$start/ict/checkpoint" --reader "$start/reader/checkpoint" --train-data "$start/data/train.qa.csv" \
    --train-iters "$steps" --lr 1e-12 --lr-decay-style constant --no-tensorboard --output-dir "$run" "$@"
}

measure() { # NAME RANKS FLAGS...
  train "$1" "$short" "${@:2}"
  train "$1" "$long" "${@:2}"
  python - "$out/$1-$short/run_record.json" "$out/$1-$long/run_record.json" "$((long - short))" <<'PYTHON'
import json, sys
few, many = (json.load(open(path, encoding="utf-8"))["seconds"] for path in sys.argv[1:3])
print(f"{(many - few) / int(sys.argv[3]):.4f} seconds a step")
PYTHON
}

embed_without_end() { # until $out/stop is there
  rm -f "$out/stop"
  while [[ ! -e $out/stop ]]; do
    rm -rf "$out/stranger"
    python tools/embed_evidence.py --evidence "$out/evidence" --retriever "$start/ict/checkpoint" --output "$out/stranger" --fp32
  done
}

for round in $(seq "$rounds"); do
  # an interval beyond the end: no version is asked for, and nothing else differs
  for arm in "never 1 --index-refresh-interval 1000" "ranks 2 --index-refresh-interval 10 --num-embedding-ranks 1" \
    "background 1 --index-refresh-interval 10 --index-refresh-mode background"; do
    read -ra words <<<"$arm"
    printf '%s, round %s: ' "${words[0]}" "$round"
    measure "${words[0]}-$round" "${words[@]:1}" 2>>"$out/log"
  done
  embed_without_end 2>>"$out/log" &
  stranger=$!
  printf 'never, beside a stranger, round %s: ' "$round"
  measure "stranger-$round" 1 --index-refresh-interval 1000 2>>"$out/log"
  touch "$out/stop"
  wait "$stranger"
done
