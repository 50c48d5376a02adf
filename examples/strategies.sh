#!/usr/bin/env bash
# Seven ways to train a retriever and a reader for the same questions (Lawton et al. 2025): none, embedder (from labels),
# generator, independent (both, each for itself), two-phase (the generator, then the retriever from it), and both together by
# RAG-Sequence or RAG-Token. SQuAD with 34,627 passages; learning rates are chosen on held-out training questions; exact match and
# F1 of 300 dev questions, recall of 2,114; strategies.md has the table and what the paper's claims come to. Hours on two CPU
# cores; a stage whose output is there is not repeated, an interrupted one continues.
#
#   examples/strategies.sh OUTPUT [READER]
#
# OUTPUT is that of readers_real_data.sh: squad/, squad-evidence/ and minilm/ are read. READER is a checkpoint that writes or
# points to answers (default OUTPUT/fusion/checkpoints); what points has no tokens: KIND=pointing leaves joint-token out and
# trains by individual-topk. INDEX=refreshed embeds the passages anew every 20 steps in place of freezing their encoder. READER_FLAGS
# are further flags of all training with the reader, such as adapters of a language model ("--lora-rank 16 --lora-alpha 32 --lora-parts
# reader": the retriever is trained in full). ANSWER_FROM=sequence or token has answers weighed by the retriever's scores in place of
# reading all passages in one prompt; its answers and its table are in results-sequence or results-token, and nothing is trained
# again. PROCESSES (default 2) ranks share the work.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-2}
source examples/common.sh
need 1 "$@"
out=$1 reader=${2:-$1/fusion/checkpoints}
root=$out/strategies-${INDEX:-fixed}
questions=$out/squad/train-v1.1.qa.csv
train=$root/train.qa.csv held_out=$root/held-out.qa.csv
read -r -a reader_flags <<<"${READER_FLAGS:-}"
# answers, and where the table is
results=$root/results table=$root
if [[ ${ANSWER_FROM:-concatenated} != concatenated ]]; then results=$root/results-$ANSWER_FROM table=$root/results-$ANSWER_FROM; fi
# what keeps the index right; what the embedder is chosen by
index=() searched=(--eval-embeddings "$root/embeddings")
if [[ ${INDEX:-fixed} == refreshed ]]; then
  index=(--no-freeze-passage-encoder --index-refresh-interval 20)
  searched=(--no-freeze-passage-encoder --eval-max-passages 4000)
fi
# trained on one passage at a time, asked with all of them
objective=() together=(joint-sequence joint-token) answer_from=(--answer-from "${ANSWER_FROM:-concatenated}")
if [[ ${KIND:-writing} == pointing ]]; then objective=(--objective individual-topk) together=(joint-sequence) answer_from=(); fi

hold_out() { # 300 questions behind those that the embedder learns from
  mkdir -p "$root"
  awk 'NR > 20000 && NR % 225 == 0' "$questions" >"$held_out"
  awk 'NR <= 20000 || NR % 225' "$questions" >"$train.partial"
  mv "$train.partial" "$train"
}

rate() { # RUN DEFAULT: the learning rate that was chosen
  if [[ -e $root/$1/lr_grid.json ]]; then
    command "${PYTHON:-python}" -c 'import json, sys; print(json.load(open(sys.argv[1]))["best"]["lr"])' "$root/$1/lr_grid.json"
  else
    echo "$2"
  fi
}

finetune() { # NAME RETRIEVER READER FLAGS...: a training with the reader
  local name=$1 retriever=$2 reader=$3
  shift 3
  parallel tasks/main.py --task end-to-end-finetune --config "examples/strategy_${name//-/_}.yaml" --dtype auto \
    --retriever "$retriever" --reader "$reader" --evidence "$out/squad-evidence" --embeddings "$root/embeddings" \
    --train-data "$train" --valid-data "$held_out" --max-valid-questions 64 --save-interval 20 --keep-last 1 \
    --output-dir "$root/$name" --save "$root/$name/checkpoints" "${objective[@]}" "${reader_flags[@]}" "$@"
}

measure() { # NAME RETRIEVER READER RUNS...: recall and answers; the runs are what the hours are of
  local name=$1 retriever=$2 reader=$3 dev=$out/squad/dev-v1.1.qa.csv
  shift 3
  local search=(--retriever "$retriever" --evidence "$out/squad-evidence" --questions "$dev")
  if [[ $retriever == "$out/minilm" ]]; then
    search+=(--embeddings "$root/embeddings")
  elif [[ ${INDEX:-fixed} == fixed ]]; then # passages are encoded as before
    search+=(--embeddings "$root/embeddings" --embedded-by "$out/minilm")
  else
    embed "$retriever" "$root/$name/embeddings"
    search+=(--embeddings "$root/$name/embeddings")
  fi
  once "$root/results/$name/recall" parallel tasks/main.py --task retriever-evaluate --dtype auto "${search[@]}" \
    --question-stride 5 --topk 1 5 20 --output-dir "$root/results/$name/recall"
  once "$results/$name/answers" parallel tasks/main.py --task qa-evaluate --config examples/strategy_answers.yaml --dtype auto \
    --reader "$reader" "${search[@]}" --question-stride 35 --max-questions 300 "${answer_from[@]}" \
    --output-dir "$results/$name/answers"
  if [[ -d $results/$name ]]; then
    local runs
    printf -v runs ', "%s"' "${@/#/$root/}"
    echo "[${runs#, }]" >"$results/$name/training.json"
    if (($# == 0)); then echo "[]" >"$results/$name/training.json"; fi
    once "$results/$name/recall" ln -s "../../results/$name/recall" "$results/$name/recall"
  fi
  result "$name"
}

embed() { # RETRIEVER OUTPUT
  parallel tools/embed_evidence.py --dtype auto --micro-batch-size 64 --evidence "$out/squad-evidence" --retriever "$1" --output "$2"
}

if [[ -n ${DRY_RUN_MADE:-} ]]; then printf '%s\n' "$train" "$held_out" >>"$DRY_RUN_MADE"; else once "$train" hold_out; fi
embed "$out/minilm" "$root/embeddings"
measure none "$out/minilm" "$reader"

parallel tasks/main.py --task retriever-finetune --config examples/strategy_embedder.yaml --dtype auto \
  --pretrained-checkpoint "$out/minilm" --train-data "$out/squad/biencoder-train-v1.1.json" --eval-questions "$held_out" \
  --eval-evidence "$out/squad-evidence" --save-interval 500 --keep-last 1 --output-dir "$root/embedder" \
  --save "$root/embedder/checkpoints" "${searched[@]}"
embedder=$root/embedder/checkpoints/best
measure embedder "$embedder" "$reader" embedder

finetune generator "$out/minilm" "$reader"
generator=$root/generator/checkpoints/best/reader
measure generator "$out/minilm" "$generator" generator
measure independent "$embedder" "$generator" embedder generator

finetune two-phase "$out/minilm" "$generator" "${index[@]}"
measure two-phase "$root/two-phase/checkpoints/best/retriever" "$root/two-phase/checkpoints/best/reader" generator two-phase

for name in "${together[@]}"; do
  finetune "$name" "$out/minilm" "$reader" --load "$root/$name/checkpoints" --retriever-lr "$(rate two-phase 1e-5)" \
    --lr "$(rate generator 1e-4)" "${index[@]}"
  measure "$name" "$root/$name/checkpoints/retriever" "$root/$name/checkpoints/reader" "$name"
done

names=(none embedder generator independent two-phase "${together[@]}")
if [[ -z ${DRY_RUN_MADE:-} ]]; then
  python -m megatron_retrieval strategies --strategies "${names[@]/#/$results/}" --output-dir "$table" --picture
fi
