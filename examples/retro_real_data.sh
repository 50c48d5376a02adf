#!/usr/bin/env bash
# What neighbours add to a small language model on real text, in bits per byte: a model of 21 million weights learns from scratch with them
# (retro_scratch.yaml), and a frozen SmolLM2-135M learns to read them (retro_small.yaml) beside its control, the same training with exchanged
# neighbours. SQuAD's articles are cut into sections of 1,024 tokens. Odd sections are read, those of the train file in training and those of
# the dev file to be scored; even ones and the other texts are searched. Hours on two CPU cores; a stage whose output is there is not repeated,
# an interrupted one continues.
#
#   examples/retro_real_data.sh DATA SMOLLM2 MINILM OUTPUT [FLAG...]
#
# DATA holds squad/{train,dev}-v1.1.json.gz and nq_qed/biencoder-nq-qed-{train,dev}.json.gz; SMOLLM2 and MINILM are folders of Hugging
# Face. PROCESSES (default 2) ranks share the work and change nothing in the result; flags go to pretrain_retro.py. SHARES (default
# "0.0625 0.25") are smaller databases that are evaluated beside the whole one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-2}
source examples/common.sh
need 4 "$@"
data=$1 smollm2=$2 minilm=$3 out=$4
shift 4
shares=${SHARES:-0.0625 0.25}

once "$out/smollm2" python tools/import_checkpoint.py --format hf-causal-lm --input "$smollm2" --output "$out/smollm2"
once "$out/minilm" python tools/import_checkpoint.py --format sentence-transformers --input "$minilm" --output "$out/minilm"
once "$out/chunks" python tools/build_chunks.py --output "$out/chunks" --vocab-file "$smollm2/tokenizer.json" \
  --retro-section-length 1024 --workers "$PROCESSES" \
  --input "$data"/squad/{train,dev}-v1.1.json.gz "$data"/nq_qed/biencoder-nq-qed-{train,dev}.json.gz
parallel tools/embed_evidence.py --chunks "$out/chunks" --retriever "$out/minilm" --output "$out/keys" --dtype auto --micro-batch-size 32

neighbors() { # NAME FLAG...
  parallel tools/find_neighbors.py --chunks "$out/chunks" --embeddings "$out/keys" --output "$out/$1" \
    --valid-fraction 0 --valid-inputs 1 --retro-search-valid "${@:2}"
}

neighbors neighbors --retro-own-document document --retro-database-sections even
neighbors other-articles --retro-own-document group --retro-database-sections even
neighbors own-documents-too --retro-own-document none
further=("$out/other-articles" "$out/own-documents-too")
for share in $shares; do
  neighbors "share-$share" --retro-own-document document --retro-database-sections even --retro-database-share "$share"
  further+=("$out/share-$share")
done

pretrain() { # NAME CONFIG FLAG...
  local run=$out/$1
  parallel pretrain_retro.py --config "examples/$2.yaml" --retro-chunks "$out/chunks" --retro-neighbors "$out/neighbors" \
    --retro-sections odd --output-dir "$run" --save "$run/checkpoints" --load "$run/checkpoints" "${@:3}"
}

evaluate() { # NAME SEQ_LENGTH NEIGHBORS...
  local run=$out/$1
  once "$run/evaluation" parallel tasks/main.py --task retro-evaluate --checkpoint "$run/checkpoints" --retro-chunks "$out/chunks" \
    --retro-neighbors "${@:3}" --retro-num-neighbors 2 1 4 --retro-sections odd --max-documents 64 --seq-length "$2" \
    --output-dir "$run/evaluation"
}

pretrain scratch retro_scratch "$@"
evaluate scratch 512 "$out/neighbors" "${further[@]}"
pretrain retro retro_small --pretrained-checkpoint "$out/smollm2" "$@"
evaluate retro 1024 "$out/neighbors" "${further[@]}"
pretrain exchanged retro_small --pretrained-checkpoint "$out/smollm2" --retro-arm swapped "$@"
evaluate exchanged 1024 "$out/neighbors"
