"""Write a dual encoder's checkpoint as a folder that transformers or sentence-transformers opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_retrieval.checkpoint.dual_encoder import describe_dual_encoder
from megatron_retrieval.checkpoint.hf_formats import ForeignEncoder, ForeignFormat, write_encoder
from megatron_retrieval.checkpoint.reader import TensorReader
from megatron_retrieval.config import run_program
from megatron_retrieval.utils.files import read_lines
from megatron_retrieval.utils.logging import get_logger


@dataclass(kw_only=True, frozen=True)
class ExportConfig:
    """Export a checkpoint of a dual encoder, saved at any layout of ranks."""

    format: ForeignFormat
    """Kind of the output: BertModel, DPRQuestionEncoder with DPRContextEncoder, or a sentence-transformers folder."""
    load: Path
    """Folder of the checkpoint."""
    output: Path
    """Folder to write; with separate towers it holds the folders question_encoder and ctx_encoder."""


def main(config: ExportConfig) -> None:
    description = describe_dual_encoder(config.load)
    reader = TensorReader(description.folder, description.manifest)
    encoder = ForeignEncoder(
        config=description.config,
        text_format=description.text_format,
        weights={name: reader.full(name) for name in reader.names()},
        vocabulary=tuple(line.rstrip("\r\n") for line in read_lines(description.vocab_file)),
        lower_case=description.lower_case,
    )
    write_encoder(config.format, encoder, config.output)
    get_logger().info("exported %s to %s", description.folder, config.output)


if __name__ == "__main__":
    run_program(ExportConfig, main)
