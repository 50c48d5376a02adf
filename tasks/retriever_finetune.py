"""Fine-tune a dual encoder; leaves configuration, metrics and run record in `--output-dir`."""

from __future__ import annotations

from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.retriever_finetune import RetrieverFinetuneConfig, build
from megatron_retrieval.training.training_run import run_training

__all__ = ["RetrieverFinetuneConfig", "main"]


def main(config: RetrieverFinetuneConfig, topology: ProcessTopology) -> None:
    run_training(build, config, topology)
