"""Train a retriever and a reader together; leaves configuration, metrics and run record in `--output-dir`."""

from __future__ import annotations

from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.end_to_end.build import build, embedding_command
from megatron_retrieval.recipes.end_to_end.config import EndToEndFinetuneConfig
from megatron_retrieval.refresh.embedding_rank import supervise_worker
from megatron_retrieval.training.training_run import run_training

__all__ = ["EndToEndFinetuneConfig", "main"]


def main(config: EndToEndFinetuneConfig, topology: ProcessTopology) -> None:
    if topology.side_rank is None:
        run_training(build, config, topology)
    else:
        folder = config.index.folder(config.training.log.output_dir)
        timeout_seconds = 60 * config.index.embedding_timeout_minutes
        supervise_worker(embedding_command(config, topology), folder, topology, timeout_seconds=timeout_seconds)
