"""Fine-tune a reader that writes its answers; leaves configuration, metrics and run record in `--output-dir`."""

from __future__ import annotations

from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.fusion_finetune import FusionFinetuneConfig, build
from megatron_retrieval.training.training_run import run_training

__all__ = ["FusionFinetuneConfig", "main"]


def main(config: FusionFinetuneConfig, topology: ProcessTopology) -> None:
    run_training(build, config, topology)
