"""Fine-tune an extractive reader; leaves configuration, metrics and run record in `--output-dir`."""

from __future__ import annotations

from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.extractive_finetune import ExtractiveFinetuneConfig, build
from megatron_retrieval.training.training_run import run_training

__all__ = ["ExtractiveFinetuneConfig", "main"]


def main(config: ExtractiveFinetuneConfig, topology: ProcessTopology) -> None:
    run_training(build, config, topology)
