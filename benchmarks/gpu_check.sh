#!/usr/bin/env bash
# Everything that only a GPU can show, in one call, under nine minutes on one card: parity with the CPU, forms of attention, Triton's kernel,
# NCCL, kill and resume, exact search of 21 million vectors, embedding, and training steps. The file holds every figure and every failure.
#
#   benchmarks/gpu_check.sh gpu_check.json            on a machine with a CUDA card
#   benchmarks/gpu_check.sh gpu_check.json --device cpu --tiny   the same checks in small, on a CPU
#
# It needs no network. The machine needs torch 2.6 or later for CUDA, with numpy and Triton (without Triton the search uses torch alone); all
# else is carried, 52 MB for torch 2.11 and Python 3.12:
#
#   pip install --target carry --no-deps --python-version 3.12 --only-binary :all: megatron-core==0.16.1 psutil safetensors tokenizers \
#     sentencepiece sentencex regex tyro docstring-parser typing-extensions pyyaml tqdm packaging
#   PYTHONPATH=$PWD/carry benchmarks/gpu_check.sh gpu_check.json
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
output=$1
shift
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu_check.py --output "$output" "$@"
