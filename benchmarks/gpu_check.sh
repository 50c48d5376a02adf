#!/usr/bin/env bash
# Everything that only a GPU can show, in one call, under nine minutes on one card: parity with the CPU, forms of attention, Triton's kernel,
# NCCL, kill and resume, exact search of 21 million vectors, embedding, and training steps. The file holds every figure and every failure.
#
#   benchmarks/gpu_check.sh gpu_check.json            on a machine with a CUDA card
#   benchmarks/gpu_check.sh gpu_check.json --device cpu --tiny   the same checks in small, on a CPU
#
# It needs no network. Python 3.11 or 3.12 with torch 2.6 or later for CUDA (2.11 brings Triton; without it the search uses torch alone) and
# numpy must be there. All else can be carried, 30 MB without torch's own requirements; on a machine with the same Python:
#
#   pip install --target carry --no-deps --python-version 3.12 --only-binary :all: megatron-core==0.16.1 psutil safetensors tokenizers \
#     transformers huggingface-hub sentencepiece regex tyro docstring-parser typeguard typing-extensions shtab rich pygments markdown-it-py mdurl \
#     pyyaml tqdm packaging einops && find carry -name tests -prune -exec rm -rf {} +
#   PYTHONPATH=$PWD:$PWD/carry benchmarks/gpu_check.sh gpu_check.json
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
output=$1
shift
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu_check.py --output "$output" "$@"
