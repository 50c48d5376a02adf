#!/usr/bin/env bash
# A reader for Natural Questions, TriviaQA or WebQuestions over the passages that a trained retriever finds for the published questions: the
# extractive reader of DPR (41.5 / 56.8 exact match on the test sets), or fusion in the decoder with T5-base (50.1 with the
# passages that its authors retrieved). A second start continues where the first one stopped.
#
#   examples/finetune_reader.sh nq|trivia|webquestions extractive|fusion DATA RETRIEVER MODEL OUTPUT
#
# DATA holds NAME-train.qa.csv, NAME-dev.qa.csv and NAME-test.qa.csv; RETRIEVER is the output folder of finetune_dpr.sh; MODEL is a
# folder in Hugging Face's format, of BERT-base or of T5-base. PROCESSES (default 8) GPUs share the work and change nothing
# in the result.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-8}
source examples/common.sh
need 6 "$@"
name=$1 kind=$2 data=$3 retriever=$4 model=$5 out=$6
run=$out/$name-$kind

case $kind in
  extractive) format=hf-bert training=(tasks/main.py --task extractive-finetune --config examples/dpr_reader.yaml) ;;
  fusion) format=hf-t5 training=(tasks/main.py --task fusion-finetune --config examples/fid.yaml) ;;
  *)
    echo "error: '$kind' is no reader: extractive or fusion" >&2
    exit 2
    ;;
esac

once "$out/$format" python tools/import_checkpoint.py --format "$format" --input "$model" --output "$out/$format"
for part in train dev test; do
  once "$out/$name-$part" parallel tasks/main.py --task retriever-evaluate --evidence "$retriever/evidence" \
    --embeddings "$retriever/$name/embeddings" --retriever "$retriever/$name/checkpoints" --dtype auto \
    --questions "$(file "$data/$name-$part.qa.csv")" --topk 1 5 20 100 --output-dir "$out/$name-$part"
done

parallel "${training[@]}" --dtype auto --pretrained-checkpoint "$out/$format" \
  --train-data "$out/$name-train/results.json" --valid-data "$out/$name-dev/results.json" --max-valid-questions 2000 \
  --output-dir "$run" --save "$run/checkpoints" --load "$run/checkpoints" --keep-last 2
parallel tasks/main.py --task qa-evaluate --reader "$run/checkpoints" --dtype auto --num-passages 100 \
  --questions "$out/$name-test/results.json" --output-dir "$run/test"
