#!/usr/bin/env bash
# REALM (Guu et al. 2020) on Wikipedia: the Inverse Cloze Task trains a shared encoder with a 128-wide projection, then the
# retriever and a masked language model learn together to fill names and dates of sentences. A second start continues where the
# first one stopped.
#
#   examples/pretrain_realm.sh PASSAGES MODEL OUTPUT [FLAG...]
#
# PASSAGES is a file of passages such as psgs_w100.tsv.gz; MODEL is a folder of BERT-base in Hugging Face's format, with the head
# of its pretraining. PROCESSES (default 16) GPUs share the work, EMBEDDING_RANKS (default 8) of them embed; TAGGER finds the names:
# rules (default), or spacy with the pipeline TAGGER_MODEL. Flags go to pretrain_realm.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-16}
source examples/common.sh
need 3 "$@"
passages=$1 model=$2 out=$3
shift 3

once "$out/bert" python tools/import_checkpoint.py --format hf-masked-lm --input "$model" --output "$out/bert"
vocabulary=$out/bert/iter_0000000/vocab.txt
once "$out/corpus" python tools/build_corpus.py --input "$passages" --output "$out/corpus" --vocab-file "$vocabulary" \
  --workers "$(nproc)"
once "$out/evidence" python tools/build_evidence.py --input "$passages" --output "$out/evidence" --vocab-file "$vocabulary" \
  --workers "$(nproc)"
once "$out/spans" python tools/build_salient_spans.py --evidence "$out/evidence" --output "$out/spans" \
  --tagger "${TAGGER:-rules}" ${TAGGER_MODEL:+--tagger-model "$TAGGER_MODEL"} --workers "$(nproc)"

parallel pretrain_ict.py --config examples/ict.yaml --dtype auto --data-path "$out/corpus" --pretrained-checkpoint "$out/bert" \
  --biencoder-shared-query-context-model --biencoder-projection-dim 128 --biencoder-projection-norm \
  --biencoder-projection-dropout 0.1 --no-retriever-score-scaling --retriever-seq-length 288 --query-seq-length 96 \
  --output-dir "$out/ict" --save "$out/ict/checkpoints" --load "$out/ict/checkpoints" --keep-last 2

parallel pretrain_realm.py --config examples/realm.yaml --dtype auto --num-embedding-ranks "${EMBEDDING_RANKS:-8}" \
  --retriever "$out/ict/checkpoints" --reader "$out/bert" --evidence "$out/evidence" --spans "$out/spans" \
  --output-dir "$out/realm" --save "$out/realm/checkpoints" --load "$out/realm/checkpoints" --keep-last 2 "$@"
