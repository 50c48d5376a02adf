"""Evaluate a retriever: do the first k passages hold an answer, and are they the relevant ones?"""

from __future__ import annotations

from megatron_retrieval.applications.retriever_evaluation import RetrieverEvaluateConfig, main
from megatron_retrieval.parallel.launch import run_distributed

__all__ = ["RetrieverEvaluateConfig", "main"]

if __name__ == "__main__":
    run_distributed(RetrieverEvaluateConfig, main)
