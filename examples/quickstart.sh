#!/usr/bin/env bash
# From nothing to answers within three minutes on two CPU cores: generate a mini encyclopedia, train a small dual encoder from
# random weights, first on its text alone, then on questions, and a reader that points to answers in what it finds; then both
# together, from questions and answers alone. All are measured on questions about things that training never asked for.
#
#   examples/quickstart.sh [OUTPUT]     default: runs/quickstart
#
# MSS=1 adds a stage behind step 3: masked salient spans, which train the retriever of step 3 further on text alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-runs/quickstart}
python=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # so small a model gains little from threads, and they stall where cores are shared
if [[ -e $out ]]; then
  mv "$out" "$out.$(date +%Y%m%d-%H%M%S)" # earlier runs are kept
fi
started=$(date +%s)
trap 'jobs -p | xargs -r kill' EXIT # what runs beside ends with the script

step() { printf '\n== %s\n' "$1"; }

settings=(--config examples/quickstart.yaml --log-interval 50 --no-tensorboard)
train=("$python" -m torch.distributed.run --standalone --nproc-per-node "${RANKS:-2}") # any number of ranks trains the same model

ask() { # QUESTIONS FOLDER DEPTH...: finds passages for the questions of a file with the fine-tuned encoder
  local questions=$1 folder=$2
  shift 2
  "$python" tasks/main.py --task retriever-evaluate --evidence "$out/evidence" --embeddings "$out/finetuned/embeddings" \
    --retriever "$out/finetuned/checkpoint" --questions "$out/data/$questions" --output-dir "$out/finetuned/$folder" --topk "$@"
}

step "1/8 generate the encyclopedia"
"$python" tools/make_encyclopedia.py --output "$out/data"

step "2/8 build the evidence, and the corpus of its text" # on a core each, as other programs below that need one alone
"$python" tools/build_evidence.py --input "$out/data/psgs_w100.tsv" --output "$out/evidence" --vocab-file "$out/data/vocab.txt" &
building=$!
"$python" tools/build_corpus.py --input "$out/data/psgs_w100.tsv" --output "$out/corpus" --vocab-file "$out/data/vocab.txt"
wait "$building"

step "3/8 train without labels" # the Inverse Cloze Task: which passage does this sentence come from?
"${train[@]}" pretrain_ict.py "${settings[@]}" --data-path "$out/corpus" --valid-fraction 0 --train-iters 120 \
  --eval-questions "$out/data/biencoder-dev.json" --eval-evidence "$out/evidence" --eval-topk 1 5 20 \
  --output-dir "$out/ict" --save "$out/ict/checkpoint" # recall before the first step is that of random weights

masked=()
if [[ ${MSS:-} == 1 ]]; then # which passages help to recover a name or a date of this sentence?
  step "between: masked salient spans"
  "$python" tools/build_salient_spans.py --evidence "$out/evidence" --output "$out/spans"
  "${train[@]}" pretrain_mss.py --config examples/quickstart_mss.yaml --log-interval 20 --no-tensorboard --spans "$out/spans" \
    --evidence "$out/evidence" --retriever "$out/ict/checkpoint" --reader "$out/ict/checkpoint" \
    --eval-questions "$out/data/biencoder-dev.json" --output-dir "$out/mss" --save "$out/mss/checkpoint"
  masked=(--mss "$out/mss")
fi

step "4/8 fine-tune" # questions of one title are one another's hard negatives: the title does not tell their passages apart
"${train[@]}" tasks/main.py --task retriever-finetune "${settings[@]}" --pretrained-checkpoint "$out/ict/checkpoint" \
  --train-data "$out/data/biencoder-train.json" --num-hard-negatives 0 --same-title-questions 4 --train-iters 160 --lr 0.002 \
  --output-dir "$out/finetuned" --save "$out/finetuned/checkpoint"

step "5/8 find passages"
"$python" tools/embed_evidence.py --evidence "$out/evidence" --retriever "$out/finetuned/checkpoint" \
  --output "$out/finetuned/embeddings" --micro-batch-size 64
ask biencoder-train.json train-evaluation 1 5 >"$out/finetuned/train-evaluation.txt" & # what the reader learns from
asking=$!
ask biencoder-dev.json evaluation 1 5 20
question=$(tail -n 1 "$out/data/dev.qa.csv" | cut -f 1)
printf '\nquestion: %s\n\n' "$question"
"$python" -m megatron_retrieval search "$question" --evidence "$out/evidence" --embeddings "$out/finetuned/embeddings" \
  --retriever "$out/finetuned/checkpoint" --topk 2

step "6/8 read" # a reader from the retriever's encoder learns to point to the answer in a passage that holds it
wait "$asking"
cat "$out/finetuned/train-evaluation.txt"
"${train[@]}" tasks/main.py --task extractive-finetune --config examples/quickstart_reader.yaml --log-interval 50 --no-tensorboard \
  --pretrained-checkpoint "$out/finetuned/checkpoint" --train-data "$out/finetuned/train-evaluation/results.json" \
  --output-dir "$out/reader" --save "$out/reader/checkpoint"
"$python" tasks/main.py --task qa-evaluate --reader "$out/reader/checkpoint" --num-passages 1 \
  --questions "$out/finetuned/evaluation/results.json" --output-dir "$out/reader/evaluation" >"$out/reader/evaluation.txt" &
reading=$! # ends while the next program starts

step "7/8 train end to end" # the retriever of step 3 learns from what the reader makes of its passages; no passage is labelled
"${train[@]}" tasks/main.py --task end-to-end-finetune --config examples/quickstart_end_to_end.yaml --log-interval 20 --no-tensorboard \
  --retriever "$out/ict/checkpoint" --reader "$out/reader/checkpoint" --evidence "$out/evidence" \
  --train-data "$out/data/train.qa.csv" --valid-data "$out/data/dev.qa.csv" --eval-iters 1 \
  --output-dir "$out/end-to-end" --save "$out/end-to-end/checkpoint"

step "8/8 before, between and after"
wait "$reading"
cat "$out/reader/evaluation.txt"
"$python" examples/quickstart_report.py --ict "$out/ict" --end-to-end "$out/end-to-end" \
  --finetuned "$out/finetuned/evaluation" --reader "$out/reader/evaluation" --started "$started" --output "$out/metrics.json" "${masked[@]}"
