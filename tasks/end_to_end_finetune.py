"""Train a retriever and a reader together; leaves configuration, metrics and run record in `--output-dir`."""

from __future__ import annotations

from megatron_retrieval.parallel import ProcessTopology
from megatron_retrieval.recipes.embedding_rank import supervise_worker
from megatron_retrieval.recipes.end_to_end import build, embedding_command
from megatron_retrieval.recipes.end_to_end_finetune import EndToEndFinetuneConfig
from megatron_retrieval.reports.training_run import run_training

__all__ = ["EndToEndFinetuneConfig", "main"]


def main(config: EndToEndFinetuneConfig, topology: ProcessTopology) -> None:
    if topology.side_rank is None:
        run_training(build, config, topology)
    else:
        folder = config.index.folder(config.training.log.output_dir)
        supervise_worker(embedding_command(config, topology), folder, topology)
