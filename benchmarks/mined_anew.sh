#!/usr/bin/env bash
# Hard negatives that are mined anew while an encoder learns (ANCE), against the same encoder's negatives mined once: all-MiniLM-L6-v2, every fifth
# question about every tenth article of SQuAD train (1,726), the 3,137 passages of these articles, three times through the questions, two of
# the first ten passages found as negatives, searched for anew each time or never. Measured over the 3,526 passages of the dev articles.
#
#   benchmarks/mined_anew.sh OUTPUT
#
# OUTPUT is that of benchmarks/mined_negatives.sh. SEEDS (default "1 2 3"); a run that has ended is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$1 root=$1/mined-anew
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

once() { # PATH COMMAND...: run the command unless the path is there
  local path=$1
  shift
  [[ -e $path ]] || "$@"
}

mkdir -p "$root"
once "$root/questions.json" python - "$out/squad/biencoder-train-v1.1.json" "$out/squad/psgs_w100.tsv" "$root" <<'PYTHON'
import json, sys
with open(sys.argv[1], encoding="utf-8") as file:
    asked = json.load(file)
titles = [question["positive_ctxs"][0]["title"] for question in asked]
articles = set(list(dict.fromkeys(titles))[::10])
with open(sys.argv[2], encoding="utf-8", newline="") as source:
    header, *rows = source
with open(f"{sys.argv[3]}/passages.tsv", "w", encoding="utf-8", newline="") as target:
    target.writelines([header, *(row for row in rows if row.rstrip("\r\n").split("\t")[-1].strip('"') in articles)])
with open(f"{sys.argv[3]}/questions.json", "w", encoding="utf-8") as file:
    json.dump([question for question, title in zip(asked, titles) if title in articles][::5], file)
PYTHON
once "$root/evidence" python tools/build_evidence.py --input "$root/passages.tsv" --output "$root/evidence" \
  --vocab-file "$out/minilm/iter_0000000/vocab.txt"

for seed in ${SEEDS:-1 2 3}; do
  for name in once anew; do
    run=$root/$name-$seed again=()
    [[ $name == once ]] || again=(--index-refresh-interval 27)
    once "$run/run_record.json" python -m megatron_retrieval train retriever --pretrained-checkpoint "$out/minilm" --dtype auto --seed "$seed" \
      --train-data "$root/questions.json" --num-hard-negatives 2 --evidence "$root/evidence" --mined-depth 10 "${again[@]}" --train-iters 81 \
      --global-batch-size 64 --micro-batch-size 16 --no-gradient-caching --no-retriever-score-scaling --temperature 0.05 --hidden-dropout 0 \
      --attention-dropout 0 --lr 1e-4 --lr-warmup-fraction 0.05 --no-tensorboard --output-dir "$run" --save "$run/checkpoints"
    python tools/embed_evidence.py --evidence "$out/squad-dev-evidence" --retriever "$run/checkpoints" --output "$run/embeddings" --dtype auto
    once "$run/found" python -m megatron_retrieval evaluate retriever --evidence "$out/squad-dev-evidence" --retriever "$run/checkpoints" \
      --embeddings "$run/embeddings" --dtype auto --questions "$out/squad-dev/dev-v1.1.qa.csv" --question-stride 5 --topk 1 5 20 50 \
      --no-write-results --output-dir "$run/found"
  done
  python tools/compare_runs.py --baseline "$root/once-$seed/found" --candidate "$root/anew-$seed/found"
done
