"""Write a checkpoint as a folder that transformers or sentence-transformers opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_retrieval.checkpoint.hf_models import ForeignFormat, write_model
from megatron_retrieval.checkpoint.starting_point import describe_starting_point
from megatron_retrieval.config import run_program
from megatron_retrieval.utils.logging import get_logger


@dataclass(kw_only=True, frozen=True)
class ExportConfig:
    """Export a checkpoint of a dual encoder or a masked LM, saved at any layout of ranks."""

    format: ForeignFormat
    """Kind of the output: BertModel (of a masked LM its encoder), BertForMaskedLM, DPRQuestionEncoder with
    DPRContextEncoder, or a sentence-transformers folder."""
    load: Path
    """Folder of the checkpoint."""
    output: Path
    """Folder to write; with separate towers it holds the folders question_encoder and ctx_encoder."""


def main(config: ExportConfig) -> None:
    checkpoint = describe_starting_point(config.load)
    write_model(config.format, checkpoint, config.output)
    get_logger().info("exported %s to %s", checkpoint.folder, config.output)


if __name__ == "__main__":
    run_program(ExportConfig, main)
