"""Write a checkpoint as a folder that transformers or sentence-transformers opens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from megatron_retrieval.checkpoint.huggingface.formats import FORMATS, export_model
from megatron_retrieval.config.choices import OneOf
from megatron_retrieval.config.marks import formerly
from megatron_retrieval.utils.logging import get_logger


@dataclass(kw_only=True, frozen=True)
class ExportConfig:
    """Export a checkpoint of a dual encoder, a masked LM or a T5, saved at any layout of ranks."""

    format: Annotated[str, OneOf(FORMATS)]
    """Kind of the output, and what it holds."""
    checkpoint: Path = field(metadata=formerly("load"))
    """Folder of the checkpoint."""
    output: Path
    """Folder to write; with separate towers it holds the folders question_encoder and ctx_encoder."""


def main(config: ExportConfig) -> None:
    export_model(config.format, config.checkpoint, config.output)
    get_logger().info("exported %s to %s", config.checkpoint, config.output)
