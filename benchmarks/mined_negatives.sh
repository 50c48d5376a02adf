#!/usr/bin/env bash
# What a mined hard negative is worth: all-MiniLM-L6-v2 fine-tuned with the batch's other passages as negatives, with one BM25
# negative a question besides, and with one that the encoder itself mined on top; three seeds each, answer recall at 1 / 5 / 20.
#
#   benchmarks/mined_negatives.sh DATA MODEL OUTPUT
#
# DATA and MODEL as for examples/retriever_real_data.sh. SQuAD: every sixteenth of the training questions, negatives out of all
# 34,627 passages; measured over the 3,526 passages of the dev articles. NQ-QED: its 13,121 passages for both. A run that has
# ended is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data=$1 model=$2 out=$3
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

once() { # PATH COMMAND...: run the command unless the path is there
  local path=$1
  shift
  [[ -e $path ]] || "$@"
}

evidence() { # PASSAGES FOLDER
  once "$2" python tools/build_evidence.py --input "$1" --output "$2" --vocab-file "$out/minilm/iter_0000000/vocab.txt"
}

mine() { # SET TRAIN_DATA: $out/SET-bm25.json with a BM25 negative, $out/SET-dense.json with the encoder's on top
  local evidence=$out/$1-evidence
  once "$out/$1-bm25" python tools/build_bm25.py --evidence "$evidence" --output "$out/$1-bm25"
  once "$out/$1-bm25.json" python tools/mine_negatives.py --train-data "$2" --evidence "$evidence" \
    --bm25-index "$out/$1-bm25" --num-mined 1 --output "$out/$1-bm25.json"
  python tools/embed_evidence.py --evidence "$evidence" --retriever "$out/minilm" --output "$out/$1-embeddings" --dtype auto
  once "$out/$1-found" python tasks/main.py --task retriever-evaluate --evidence "$evidence" --retriever "$out/minilm" --dtype auto \
    --embeddings "$out/$1-embeddings" --questions "$2" --topk 50 --output-dir "$out/$1-found"
  once "$out/$1-dense.json" python tools/mine_negatives.py --train-data "$out/$1-bm25.json" --keep-hard-negatives \
    --results "$out/$1-found/results.json" --num-mined 1 --output "$out/$1-dense.json"
}

measure() { # SET NAME SEED TRAIN_DATA NUM_HARD_NEGATIVES EVIDENCE QUESTIONS FLAGS...
  local result=$out/$1/$2-$3 run=$out/$1/runs/$2-$3 seed=$3 train=$4 negatives=$5 evidence=$6 questions=$7
  shift 7
  once "$run/run_record.json" python tasks/main.py --task retriever-finetune --pretrained-checkpoint "$out/minilm" --dtype auto \
    --train-data "$train" --num-hard-negatives "$negatives" --seed "$seed" --train-iters "${STEPS:-24}" \
    --global-batch-size 64 --micro-batch-size 16 --no-gradient-caching --no-retriever-score-scaling --temperature 0.05 \
    --hidden-dropout 0 --attention-dropout 0 --lr 1e-4 --lr-warmup-fraction 0.05 --no-tensorboard \
    --output-dir "$run" --save "$run/checkpoints"
  once "$result" python tools/embed_evidence.py --evidence "$evidence" --retriever "$run/checkpoints" \
    --output "$run/embeddings" --dtype auto
  once "$result" python tasks/main.py --task retriever-evaluate --evidence "$evidence" --retriever "$run/checkpoints" \
    --embeddings "$run/embeddings" --dtype auto --questions "$questions" --topk 1 5 20 --no-write-results --output-dir "$result" "$@"
}

compare() { # SET TRAIN_DATA EVIDENCE QUESTIONS FLAGS...
  local set=$1 train=$2 runs=()
  for seed in 1 2 3; do
    measure "$set" in-batch "$seed" "$train" 0 "${@:3}"
    measure "$set" bm25 "$seed" "$out/$set-bm25.json" 1 "${@:3}"
    measure "$set" bm25-and-dense "$seed" "$out/$set-dense.json" 2 "${@:3}"
  done
  for name in in-batch bm25 bm25-and-dense; do
    runs+=("$out/$set/$name-"{1,2,3})
  done
  python benchmarks/seed_table.py --measures recall@1 recall@5 recall@20 --runs "${runs[@]}"
}

once "$out/minilm" python tools/import_checkpoint.py --format sentence-transformers --input "$model" --output "$out/minilm"

once "$out/squad" python tools/convert_dataset.py --format squad --output "$out/squad" \
  --input "$data/squad/train-v1.1.json.gz" "$data/squad/dev-v1.1.json.gz"
once "$out/squad-dev" python tools/convert_dataset.py --format squad --output "$out/squad-dev" \
  --input "$data/squad/dev-v1.1.json.gz"
evidence "$out/squad/psgs_w100.tsv" "$out/squad-evidence"
evidence "$out/squad-dev/psgs_w100.tsv" "$out/squad-dev-evidence"
once "$out/squad-train.json" python - "$out/squad/biencoder-train-v1.1.json" "$out/squad-train.json" <<'PYTHON'
import json, sys
with open(sys.argv[1], encoding="utf-8") as file:
    every_sixteenth = json.load(file)[::16]
with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump(every_sixteenth, file)
PYTHON
mine squad "$out/squad-train.json"
compare squad "$out/squad-train.json" "$out/squad-dev-evidence" "$out/squad-dev/dev-v1.1.qa.csv" --question-stride 5

evidence "$data/nq_qed/psgs_w100.tsv.gz" "$out/nq-evidence"
mine nq "$data/nq_qed/biencoder-nq-qed-train.json.gz"
compare nq "$data/nq_qed/biencoder-nq-qed-train.json.gz" "$out/nq-evidence" "$data/nq_qed/biencoder-nq-qed-dev.json.gz"
