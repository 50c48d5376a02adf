#!/bin/bash
# BM25, a dense encoder and both on a data set of BEIR, against sentence-transformers and pytrec_eval on the same vectors.
# bash benchmarks/judged_sample.sh DATASET MODEL OUT: a BEIR folder, a sentence-transformers folder, a folder for results
set -euo pipefail
data=$1 model=$2 out=$3 python=${PYTHON:-python}
corpus=$(ls "$data"/corpus.jsonl*) evaluate="tasks/main.py --task retriever-evaluate --topk 1 5 10 100 --device cpu"
mkdir -p "$out"
[ -d "$out/ck" ] || $python tools/import_checkpoint.py --format sentence-transformers --input "$model" --output "$out/ck"
[ -d "$out/evidence" ] || $python tools/build_evidence.py --input "$corpus" --output "$out/evidence" --vocab-file "$model/vocab.txt"
[ -d "$out/bm25" ] || $python tools/build_bm25.py --evidence "$out/evidence" --output "$out/bm25"
$python tools/embed_evidence.py --evidence "$out/evidence" --retriever "$out/ck" --output "$out/embeddings" --fp32 \
  --embedding-dtype float32 --device cpu
dense="--embeddings $out/embeddings --retriever $out/ck" words="--bm25-index $out/bm25"
for name in words dense both; do
  case $name in words) parts=$words ;; dense) parts=$dense ;; both) parts="$words $dense" ;; esac
  $python $evaluate --evidence "$out/evidence" $parts --questions "$data"/queries.jsonl* --qrels "$data/qrels/test.tsv" \
    --output-dir "$out/$name"
done
$python benchmarks/judged_sample.py --folder "$out" --model "$model" --questions "$data"/queries.jsonl* --qrels "$data/qrels/test.tsv"
