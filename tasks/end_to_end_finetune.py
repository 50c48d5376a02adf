"""Train a retriever and a reader together; leaves configuration, metrics and run record in `--output-dir`."""

from __future__ import annotations

from megatron_retrieval.parallel import ProcessTopology
from megatron_retrieval.recipes.end_to_end import build
from megatron_retrieval.recipes.end_to_end_finetune import EndToEndFinetuneConfig
from megatron_retrieval.reports.training_run import run_training

__all__ = ["EndToEndFinetuneConfig", "main"]


def main(config: EndToEndFinetuneConfig, topology: ProcessTopology) -> None:
    run_training(build, config, topology)
