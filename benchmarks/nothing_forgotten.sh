#!/usr/bin/env bash
# What fine-tuning costs elsewhere, and what keeps it: all-MiniLM-L6-v2 fine-tuned on NQ-QED (24 steps, one BM25 negative), measured at
# home and over the dev articles of SQuAD, against the mean of the weights before and after, against distillation from the start on
# passages of wiki_extra, and against sentences of them mixed in; and the reverse, from SQuAD's run with mined negatives.
#
#   benchmarks/nothing_forgotten.sh DATA OUTPUT
#
# OUTPUT is that of benchmarks/mined_negatives.sh, whose data, evidence and SQuAD runs are used again; DATA as there.
# SEEDS (default "1 2 3"), DISTILL_WEIGHT (default 1); a run that has ended is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data=$1 out=$2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

once() { # PATH COMMAND...: run the command unless the path is there
  local path=$1
  shift
  [[ -e $path ]] || "$@"
}

finetune() { # RUN SEED NUM_HARD_NEGATIVES FLAGS...
  once "$1/run_record.json" python tasks/main.py --task retriever-finetune --pretrained-checkpoint "$out/minilm" --dtype auto \
    --num-hard-negatives "$3" --seed "$2" --train-iters 24 --global-batch-size 64 --micro-batch-size 16 --no-gradient-caching \
    --no-retriever-score-scaling --temperature 0.05 --hidden-dropout 0 --attention-dropout 0 --lr 1e-4 --lr-warmup-fraction 0.05 \
    --no-tensorboard --output-dir "$1" --save "$1/checkpoints" "${@:4}"
}

sweep() { # NAME RUN HOME ABROAD SHARES...: of the start and the run, which is share 1
  python tools/merge_checkpoints.py --checkpoints "$out/minilm" "$2/checkpoints" --output "$out/sweeps/$1" --sweep "${@:5}" --picture \
    --eval-questions "${questions[$3]}" "${questions[$4]}" --eval-evidence "${evidence[$3]}" "${evidence[$4]}" --eval-max-questions 2114 \
    --dtype auto
}

nq=$data/nq_qed/biencoder-nq-qed-dev.json.gz
once "$out/wiki-small.tsv" python - "$data/wiki_extra/psgs_w100.tsv.gz" "$out/wiki-small.tsv" <<'PYTHON'
import gzip, sys
with gzip.open(sys.argv[1], "rt", encoding="utf-8") as source:
    header, *passages = source
with open(sys.argv[2], "w", encoding="utf-8") as file:
    file.writelines([header, *passages[::12]])
PYTHON
once "$out/wiki-small" python tools/build_evidence.py --input "$out/wiki-small.tsv" --output "$out/wiki-small" \
  --vocab-file "$out/minilm/iter_0000000/vocab.txt"
declare -A questions=([nq]=$nq [squad]=$out/squad-dev/dev-v1.1.qa.csv)
declare -A evidence=([nq]=$out/nq-evidence [squad]=$out/squad-dev-evidence)
once "$out/wiki-pairs" python tools/convert_dataset.py --format sentence-pairs --input "$out/wiki-small.tsv" --output "$out/wiki-pairs"
python tools/embed_evidence.py --evidence "$out/wiki-small" --retriever "$out/minilm" --output "$out/wiki-vectors" --dtype auto

remember() { # HOME ABROAD SEED TUNED NUM_HARD_NEGATIVES TRAIN_DATA: the run TUNED, the means with its start, and the two remedies
  local remedies=$out/$1/runs
  finetune "$4" "$3" "$5" --train-data "$6"
  finetune "$remedies/distilled-$3" "$3" "$5" --train-data "$6" \
    --distill-evidence "$out/wiki-small" --distill-embeddings "$out/wiki-vectors" --distill-weight "${DISTILL_WEIGHT:-1}"
  finetune "$remedies/mixed-$3" "$3" "$5" --train-data "$6" "$out/wiki-pairs/biencoder-wiki-small.json" --train-data-weights 3 1
  sweep "$1-tuned-$3" "$4" "$1" "$2" 0 0.5 1
  sweep "$1-distilled-$3" "$remedies/distilled-$3" "$1" "$2" 0 1
  sweep "$1-mixed-$3" "$remedies/mixed-$3" "$1" "$2" 0 1
}

for seed in ${SEEDS:-1 2 3}; do
  remember nq squad "$seed" "$out/nq/runs/tuned-$seed" 1 "$out/nq-bm25.json"
  remember squad nq "$seed" "$out/squad/runs/bm25-and-dense-$seed" 2 "$out/squad-dense.json"
done
