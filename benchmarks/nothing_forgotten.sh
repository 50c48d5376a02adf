#!/usr/bin/env bash
# What fine-tuning costs elsewhere, and what keeps it: all-MiniLM-L6-v2 fine-tuned on NQ-QED (24 steps, one BM25 negative), measured at
# home and over the dev articles of SQuAD, against the mean of the weights before and after, against distillation from the start on
# passages of wiki_extra, and against sentences of them mixed in; and the reverse, from SQuAD's run with mined negatives.
#
#   benchmarks/nothing_forgotten.sh DATA OUTPUT
#
# OUTPUT is that of benchmarks/mined_negatives.sh, whose data and SQuAD runs are used again; DATA as there. At home are the passages that
# a dev question of NQ-QED names and every fifth of the others. SEEDS (default "1 2 3"); a run that has ended is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data=$1 out=$2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

once() { # PATH COMMAND...: run the command unless the path is there
  local path=$1
  shift
  [[ -e $path ]] || "$@"
}

part() { # SOURCE STRIDE NAME [QUESTIONS]: the evidence $out/NAME of every STRIDE-th passage, and of those that the questions name
  once "$out/$3.tsv" python - "$1" "$2" "$out/$3.tsv" "${@:4}" <<'PYTHON'
import csv, gzip, json, sys
csv.field_size_limit(1 << 30)
source, stride, target, *questions = sys.argv[1:]
gold = {passage["passage_id"] for path in questions for row in json.load(gzip.open(path)) for passage in row["positive_ctxs"]}
header, *rows = csv.reader(gzip.open(source, "rt", encoding="utf-8"), delimiter="\t")
with open(target, "w", encoding="utf-8", newline="") as file:
    kept = [row for number, row in enumerate(rows) if row[0] in gold or number % int(stride) == 0]
    csv.writer(file, delimiter="\t").writerows([header, *kept])
PYTHON
  once "$out/$3" python tools/build_evidence.py --input "$out/$3.tsv" --output "$out/$3" --vocab-file "$out/minilm/iter_0000000/vocab.txt"
}

finetune() { # NAME SEED FLAGS...
  local run=$out/nq/runs/$1-$2
  once "$run/run_record.json" python tasks/main.py --task retriever-finetune --pretrained-checkpoint "$out/minilm" --dtype auto \
    --num-hard-negatives 1 --seed "$2" --train-iters 24 --global-batch-size 64 --micro-batch-size 16 --no-gradient-caching \
    --no-retriever-score-scaling --temperature 0.05 --hidden-dropout 0 --attention-dropout 0 --lr 1e-4 --lr-warmup-fraction 0.05 \
    --no-tensorboard --output-dir "$run" --save "$run/checkpoints" "${@:3}"
}

sweep() { # NAME RUN HOME ABROAD SHARES...: of the start and the run, which is share 1
  python tools/merge_checkpoints.py --checkpoints "$out/minilm" "$2/checkpoints" --output "$out/sweeps/$1" --sweep "${@:5}" --picture \
    --eval-questions "${questions[$3]}" "${questions[$4]}" --eval-evidence "${evidence[$3]}" "${evidence[$4]}" --eval-max-questions 2114
}

nq=$data/nq_qed/biencoder-nq-qed-dev.json.gz
part "$data/nq_qed/psgs_w100.tsv.gz" 5 nq-small "$nq"
part "$data/wiki_extra/psgs_w100.tsv.gz" 12 wiki-small
declare -A questions=([nq]=$nq [squad]=$out/squad-dev/dev-v1.1.qa.csv)
declare -A evidence=([nq]=$out/nq-small [squad]=$out/squad-dev-evidence)
once "$out/wiki-pairs" python tools/convert_dataset.py --format sentence-pairs --input "$out/wiki-small.tsv" --output "$out/wiki-pairs"
python tools/embed_evidence.py --evidence "$out/wiki-small" --retriever "$out/minilm" --output "$out/wiki-vectors" --dtype auto

for seed in ${SEEDS:-1 2 3}; do
  finetune tuned "$seed" --train-data "$out/nq-bm25.json"
  finetune distilled "$seed" --train-data "$out/nq-bm25.json" \
    --distill-evidence "$out/wiki-small" --distill-embeddings "$out/wiki-vectors" --distill-weight 10
  finetune mixed "$seed" --train-data "$out/nq-bm25.json" "$out/wiki-pairs/biencoder-wiki-small.json" --train-data-weights 3 1
  sweep "nq-tuned-$seed" "$out/nq/runs/tuned-$seed" nq squad 0 0.5 1
  for remedy in distilled mixed; do
    sweep "nq-$remedy-$seed" "$out/nq/runs/$remedy-$seed" nq squad 0 1
  done
  sweep "squad-$seed" "$out/squad/runs/bm25-and-dense-$seed" squad nq 0 0.5 1
done
