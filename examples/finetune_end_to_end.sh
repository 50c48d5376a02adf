#!/usr/bin/env bash
# A retriever and a T5 reader for Natural Questions, TriviaQA or WebQuestions trained together, from questions and answers alone, over the 21
# million passages of DPR's Wikipedia: Individual Top-k, Joint Top-k (Sachan et al. 2021) or EMDR2 (52.5 / 71.4 exact match on the
# test sets). Some of the ranks do nothing but embed the evidence anew while the others train. A second start continues where the
# first one stopped.
#
#   examples/finetune_end_to_end.sh nq|trivia|webquestions individual-topk|joint-topk|emdr2 DATA RETRIEVER READER OUTPUT
#
# DATA holds NAME-train.qa.csv, NAME-dev.qa.csv and NAME-test.qa.csv; RETRIEVER is the output folder of finetune_dpr.sh; READER is a
# checkpoint of a T5 or of a fusion reader. PROCESSES (default 16) GPUs share the work, EMBEDDING_RANKS (default 8) of them embed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-16}
source examples/common.sh
need 6 "$@"
name=$1 objective=$2 data=$3 retriever=$4 reader=$5 out=$6
run=$out/$name-$objective

parallel tasks/main.py --task end-to-end-finetune --config examples/end_to_end.yaml --objective "$objective" --dtype auto \
  --num-embedding-ranks "${EMBEDDING_RANKS:-8}" --evidence "$retriever/evidence" \
  --retriever "$retriever/$name/checkpoints" --embeddings "$retriever/$name/embeddings" --reader "$reader" \
  --train-data "$(file "$data/$name-train.qa.csv")" --valid-data "$(file "$data/$name-dev.qa.csv")" --max-valid-questions 2000 \
  --output-dir "$run" --save "$run/checkpoints" --load "$run/checkpoints" --keep-last 2

# both parts of a checkpoint are checkpoints by themselves
parallel tools/embed_evidence.py --evidence "$retriever/evidence" --retriever "$run/checkpoints/retriever" --dtype auto \
  --output "$run/embeddings"
parallel tasks/main.py --task qa-evaluate --reader "$run/checkpoints/reader" --dtype auto --num-passages 50 \
  --retriever "$run/checkpoints/retriever" --evidence "$retriever/evidence" --embeddings "$run/embeddings" \
  --questions "$(file "$data/$name-test.qa.csv")" --output-dir "$run/test"
