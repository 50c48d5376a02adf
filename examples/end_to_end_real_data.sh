#!/usr/bin/env bash
# SQuAD as a knowledge base of 34,627 passages: all-MiniLM-L6-v2 as it is published and the fusion reader of readers_real_data.sh
# learn together, from questions and answers alone. Before; with the passage encoder frozen (RAG); with both encoders, and a new
# index every 100 steps. Exact match, F1 and answer recall on every fifth dev question. Hours on two CPU cores; a stage whose output
# is there is not repeated, an interrupted one continues. benchmarks/records holds what came out.
#
#   examples/end_to_end_real_data.sh OUTPUT
#
# OUTPUT is that of readers_real_data.sh: squad/, squad-evidence/, minilm/ and fusion/checkpoints are read. PROCESSES (default 2)
# ranks share the work and change nothing in the result.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROCESSES=${PROCESSES:-2}
source examples/common.sh
need 1 "$@"
out=$1

embed() { # NAME RETRIEVER: continues where it stopped
  parallel tools/embed_evidence.py --dtype auto --micro-batch-size 64 --evidence "$out/squad-evidence" --retriever "$2" \
    --output "$out/embeddings/$1"
}

train() { # NAME FLAGS...: continues an interrupted run, and does nothing for a finished one
  local name=$1
  shift
  parallel tasks/main.py --task end-to-end-finetune --config examples/end_to_end_small.yaml --dtype auto \
    --retriever "$out/minilm" --reader "$out/fusion/checkpoints" --evidence "$out/squad-evidence" \
    --embeddings "$out/embeddings/squad-zero" --train-data "$out/squad/train-v1.1.qa.csv" --question-stride 2 \
    --valid-data "$out/squad/dev-v1.1.qa.csv" --max-valid-questions 200 --save-interval 50 --keep-last 1 \
    --output-dir "$out/$name" --save "$out/$name/checkpoints" --load "$out/$name/checkpoints" "$@"
}

measure() { # NAME RETRIEVER READER
  once "$out/results/$1" parallel tasks/main.py --task qa-evaluate --dtype auto --num-passages 5 --max-answer-length 30 \
    --retriever "$2" --reader "$3" --evidence "$out/squad-evidence" --embeddings "$out/embeddings/$1" \
    --questions "$out/squad/dev-v1.1.qa.csv" --question-stride 5 --output-dir "$out/results/$1"
  result "$1"
}

embed squad-zero "$out/minilm"
measure squad-zero "$out/minilm" "$out/fusion/checkpoints"

train rag --freeze-passage-encoder
train end2end --index-refresh-interval 100
for name in rag end2end; do
  embed "$name" "$out/$name/checkpoints/retriever"
  measure "$name" "$out/$name/checkpoints/retriever" "$out/$name/checkpoints/reader"
done
