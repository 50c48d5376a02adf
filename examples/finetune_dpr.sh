#!/usr/bin/env bash
# DPR on Natural Questions, TriviaQA or WebQuestions, from the files that DPR published, over 21,015,324 passages. DPR's own first release
# reaches 79.97 / 85.87 percent at 20 / 100 on NQ test. A second start continues where the first one stopped.
#
#   examples/finetune_dpr.sh nq|trivia|webquestions DATA MODEL OUTPUT
#
# DATA holds psgs_w100.tsv.gz, biencoder-NAME-train.json.gz, biencoder-NAME-dev.json.gz and NAME-test.qa.csv; MODEL is a
# folder of BERT-base in Hugging Face's format. PROCESSES (default 8) GPUs share the work and change nothing in the result;
# SETTINGS (default examples/dpr.yaml) may be examples/dpr_megatron.yaml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-8}
source examples/common.sh
need 4 "$@"
name=$1 data=$2 model=$3 out=$4

if [[ ! -e $out/bert ]]; then
  python tools/import_checkpoint.py --format hf-bert --separate-towers --input "$model" --output "$out/bert"
fi
if [[ ! -e $out/evidence ]]; then
  python tools/build_evidence.py --input "$data/psgs_w100.tsv.gz" --output "$out/evidence" \
    --vocab-file "$out/bert/iter_0000000/vocab.txt" --workers "$(nproc)"
fi

parallel tasks/main.py --task retriever-finetune --config "${SETTINGS:-examples/dpr.yaml}" --dtype auto \
  --pretrained-checkpoint "$out/bert" --train-data "$data/biencoder-$name-train.json.gz" \
  --valid-data "$data/biencoder-$name-dev.json.gz" --eval-interval 1000 --output-dir "$out/$name" \
  --save "$out/$name/checkpoints" --load "$out/$name/checkpoints" --keep-last 2

parallel tools/embed_evidence.py --evidence "$out/evidence" --retriever "$out/$name/checkpoints" \
  --output "$out/$name/embeddings" --dtype auto --micro-batch-size 512
parallel tasks/main.py --task retriever-evaluate --evidence "$out/evidence" --embeddings "$out/$name/embeddings" \
  --retriever "$out/$name/checkpoints" --dtype auto --questions "$(file "$data/$name-test.qa.csv")" --topk 1 5 20 100 --output-dir "$out/$name/test"
