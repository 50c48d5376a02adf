"""Turn a public BERT, DPR, sentence-transformers model or T5 into a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from megatron_retrieval.checkpoint.huggingface.formats import FORMATS, import_model
from megatron_retrieval.checkpoint.huggingface.import_settings import ImportSettingsConfig
from megatron_retrieval.config.choices import OneOf
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.utils.logging import get_logger


@dataclass(kw_only=True, frozen=True)
class ImportConfig:
    """Import a Hugging Face model as a checkpoint for training, embedding and evaluation."""

    format: Annotated[str, OneOf(FORMATS)]
    """Kind of the input, and what it becomes."""
    input: tuple[Path, ...]
    """Folder of the model; for two towers a folder with question_encoder and ctx_encoder, or both, questions first."""
    output: Path
    """Folder of the checkpoint to write."""
    base: Path | None = None
    """Checkpoint of the model that the adapters of --input belong to, which --format peft needs."""
    separate_towers: bool = False
    """Start a question tower and a passage tower from the one encoder of the input, as DPR does."""
    settings: ImportSettingsConfig = field(default_factory=ImportSettingsConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""


def main(config: ImportConfig, topology: ProcessTopology) -> None:
    path = import_model(
        config.format,
        config.input,
        config.output,
        topology,
        separate_towers=config.separate_towers,
        settings=config.settings,
        base=config.base,
    )
    get_logger().info("imported %s into %s", ", ".join(map(str, config.input)), path)
