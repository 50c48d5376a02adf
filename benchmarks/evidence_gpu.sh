#!/usr/bin/env bash
# Evidence at scale on one GPU, checked and timed in one call: exact search of 21 million vectors against the floor that memory sets,
# and BERT-base embedding passages of 128 tokens against the rate of matrix products. It has not run on a GPU yet.
#
#   benchmarks/evidence_gpu.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python benchmarks/search_gpu.py
python benchmarks/embedding_rate.py --dtype auto --device cuda --micro-batch-size 256 --num-passages 32768
