#!/usr/bin/env bash
# What unsupervised pretraining is worth, on real text, with a BERT small enough for two CPU cores: the order of table 3 of
# Sachan et al. 2021 (arXiv 2101.00408) and the score scaling of its table 5. A BERT is pretrained from random weights on the
# paragraphs of SQuAD train, NQ-QED train and wiki_extra, then a dual encoder by the Inverse Cloze Task; answer recall on
# NQ-QED dev over 35,822 passages is measured zero-shot and after fine-tuning (DPR). About three hours on two CPU cores; a
# stage whose output is there is not repeated, an interrupted one continues. benchmarks/records holds what came out.
#
#   examples/pretraining_real_data.sh DATA OUTPUT
#
# DATA holds squad/train-v1.1.json.gz, nq_qed/{biencoder-nq-qed-{train,dev}.json.gz,psgs_w100.tsv.gz},
# wiki_extra/psgs_w100.tsv.gz and tokenizers/bert-base-uncased-vocab.txt. PROCESSES (default 2) ranks share the work and
# change nothing in the result.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-2}
source examples/common.sh
need 2 "$@"
data=$1 out=$2
vocab=$data/tokenizers/bert-base-uncased-vocab.txt
nq=$data/nq_qed

train() { # NAME PROGRAM FLAGS...: continues an interrupted run, and does nothing for a finished one
  local name=$1
  shift
  parallel "$@" --dtype auto --save-interval 100 --keep-last 1 \
    --output-dir "$out/$name" --save "$out/$name/checkpoints" --load "$out/$name/checkpoints"
}

ict() { # NAME FLAGS...
  local name=$1
  shift
  train "$name" pretrain_ict.py --config examples/ict_small.yaml --data-path "$out/corpus" "$@"
}

finetune() { # NAME START FLAGS...
  local name=$1 start=$2
  shift 2
  train "$name" tasks/main.py --task retriever-finetune --config examples/dpr_small.yaml \
    --pretrained-checkpoint "$out/$start/checkpoints" --train-data "$nq/biencoder-nq-qed-train.json.gz" "$@"
}

measure() { # NAME...
  local name
  for name in "$@"; do
    parallel tools/embed_evidence.py --evidence "$out/evidence" --retriever "$out/$name/checkpoints" \
      --output "$out/$name/embeddings" --dtype auto --micro-batch-size 64
    once "$out/$name/evaluation" parallel tasks/main.py --task retriever-evaluate --evidence "$out/evidence" \
      --embeddings "$out/$name/embeddings" --retriever "$out/$name/checkpoints" --dtype auto \
      --questions "$nq/biencoder-nq-qed-dev.json.gz" --topk 1 5 20 100 --output-dir "$out/$name/evaluation"
    result "$name"
  done
}

once "$out/evidence" python tools/build_evidence.py --input "$nq/psgs_w100.tsv.gz" "$data/wiki_extra/psgs_w100.tsv.gz" \
  --output "$out/evidence" --vocab-file "$vocab" --workers "$PROCESSES"
once "$out/corpus" python tools/build_corpus.py --output "$out/corpus" --vocab-file "$vocab" --workers "$PROCESSES" \
  --input "$data/squad/train-v1.1.json.gz" "$nq/biencoder-nq-qed-train.json.gz" "$data/wiki_extra/psgs_w100.tsv.gz"

train mlm pretrain_bert.py --config examples/bert_small.yaml --data-path "$out/corpus" --epochs 2
# one step at learning rate 0 makes a dual encoder of the weights that it starts from
ict random --train-iters 1 --lr 0
ict mlm-zero-shot --train-iters 1 --lr 0 --pretrained-checkpoint "$out/mlm/checkpoints"
ict ict --pretrained-checkpoint "$out/mlm/checkpoints"
measure random mlm-zero-shot ict

# table 3: what fine-tuning makes of each
finetune random-dpr random
finetune mlm-dpr mlm-zero-shot
finetune ict-dpr ict
measure random-dpr mlm-dpr ict-dpr
for baseline in random mlm-zero-shot; do
  python tools/compare_runs.py --baseline "$out/$baseline/evaluation" --candidate "$out/ict/evaluation"
done
python tools/compare_runs.py --baseline "$out/mlm-dpr/evaluation" --candidate "$out/ict-dpr/evaluation"

# table 5: scores are divided by TEMPERATURE * sqrt(d); ict-dpr is the row of sqrt(d)
finetune scaling-1 ict --no-retriever-score-scaling
finetune scaling-half-root ict --temperature 0.5
finetune scaling-two-roots ict --temperature 2
finetune scaling-four-roots ict --temperature 4
measure scaling-1 scaling-half-root scaling-two-roots scaling-four-roots
