#!/usr/bin/env bash
# Retriever and T5 reader from text alone: masked salient spans on DPR's Wikipedia (Sachan et al. 2021), after the Inverse Cloze
# Task. Some of the ranks do nothing but embed the evidence anew while the others train. A second start continues where the first one
# stopped.
#
#   examples/pretrain_mss.sh EVIDENCE RETRIEVER READER OUTPUT [FLAG...]
#
# EVIDENCE is a folder of tools/build_evidence.py with the retriever's vocabulary; RETRIEVER is a dual encoder, such as
# OUTPUT/ict/checkpoints of pretrain_ict.sh; READER is a checkpoint of a T5. TAGGER_MODEL names a pipeline of spaCy (default: rules find
# the names). PROCESSES (default 16) GPUs share the work, EMBEDDING_RANKS (default 8) of them embed. Flags go to pretrain_mss.py, for
# instance --eval-questions for zero-shot recall with every new index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-16}
source examples/common.sh
need 4 "$@"
evidence=$1 retriever=$2 reader=$3 out=$4
shift 4
tagger=(--tagger rules)
if [[ -n ${TAGGER_MODEL:-} ]]; then tagger=(--tagger spacy --tagger-model "$TAGGER_MODEL"); fi

once "$out/spans" python tools/build_salient_spans.py --evidence "$evidence" --output "$out/spans" --workers "$(nproc)" "${tagger[@]}"
parallel pretrain_mss.py --config examples/mss.yaml --dtype auto --spans "$out/spans" --evidence "$evidence" \
  --retriever "$retriever" --reader "$reader" --num-embedding-ranks "${EMBEDDING_RANKS:-8}" \
  --output-dir "$out/mss" --save "$out/mss/checkpoints" --load "$out/mss/checkpoints" --keep-last 2 "$@"
