"""Fine-tune a reader of any kind; leaves configuration, metrics and run record in `--output-dir`."""

from __future__ import annotations

from typing import Any

from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.extractive import ExtractiveFinetuneConfig
from megatron_retrieval.readers.finetune import ReaderFinetuneConfig
from megatron_retrieval.readers.fusion import FusionFinetuneConfig
from megatron_retrieval.recipes.reader_finetune import build
from megatron_retrieval.training.training_run import run_training

__all__ = ["ExtractiveFinetuneConfig", "FusionFinetuneConfig", "main"]


def main(config: ReaderFinetuneConfig[Any], topology: ProcessTopology) -> None:
    run_training(build, config, topology)
