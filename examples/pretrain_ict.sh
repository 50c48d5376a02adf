#!/usr/bin/env bash
# A retriever from text alone: the Inverse Cloze Task on Wikipedia with the settings of Sachan et al. 2021 (BERT-base, 100,000
# steps of 4,096 blocks), starting from BERT. A second start continues where the first one stopped; on many nodes, give the
# last command to examples/slurm_train.sh.
#
#   examples/pretrain_ict.sh TEXT MODEL OUTPUT [FLAG...]
#
# TEXT is any file that tools/build_corpus.py reads, such as psgs_w100.tsv.gz; MODEL is a folder of BERT-base in Hugging
# Face's format. PROCESSES (default 8) GPUs share the work and change nothing in the result. Flags go to pretrain_ict.py, for
# instance --eval-questions and --eval-evidence for recall during training.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-8}
source examples/common.sh
need 3 "$@"
text=$1 model=$2 out=$3
shift 3

if [[ ! -e $out/bert ]]; then
  python tools/import_checkpoint.py --format hf-bert --separate-towers --input "$model" --output "$out/bert"
fi
if [[ ! -e $out/corpus ]]; then
  python tools/build_corpus.py --input "$text" --output "$out/corpus" \
    --vocab-file "$out/bert/iter_0000000/vocab.txt" --workers "$(nproc)"
fi

parallel pretrain_ict.py --config examples/ict.yaml --dtype auto --data-path "$out/corpus" \
  --pretrained-checkpoint "$out/bert" --output-dir "$out/ict" \
  --save "$out/ict/checkpoints" --load "$out/ict/checkpoints" --keep-last 2 "$@"
