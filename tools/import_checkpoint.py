"""Turn a public BERT, DPR or sentence-transformers model into a checkpoint of a dual encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_retrieval.checkpoint.dual_encoder import KIND, VOCAB_NAME, checkpoint_config
from megatron_retrieval.checkpoint.hf_formats import ForeignFormat, read_encoder
from megatron_retrieval.checkpoint.reader import fill_model
from megatron_retrieval.checkpoint.writer import save_checkpoint
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel import ParallelConfig, ProcessTopology, run_distributed
from megatron_retrieval.utils.logging import get_logger


@dataclass(kw_only=True, frozen=True)
class ImportConfig:
    """Import a Hugging Face model as a checkpoint for training, embedding and evaluation."""

    format: ForeignFormat
    """Kind of the input: BertModel, DPRQuestionEncoder with DPRContextEncoder, or a sentence-transformers folder."""
    input: tuple[Path, ...]
    """Folder of the model; for two towers a folder with question_encoder and ctx_encoder, or both, questions first."""
    output: Path
    """Folder of the checkpoint to write."""
    separate_towers: bool = False
    """Start a question tower and a passage tower from the one encoder of the input, as DPR does."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""


def main(config: ImportConfig, topology: ProcessTopology) -> None:
    encoder = read_encoder(config.format, config.input, separate_towers=config.separate_towers)
    model = DualEncoder(encoder.config, topology)
    fill_model(model, encoder.weights.keys(), encoder.weights.__getitem__, topology, source="the import")
    vocabulary = "".join(f"{token}\n" for token in encoder.vocabulary)
    path = save_checkpoint(
        config.output,
        model,
        topology,
        kind=KIND,
        config=checkpoint_config(encoder.config, encoder.text_format, encoder.lower_case),
        assets={VOCAB_NAME: vocabulary.encode()},
    )
    get_logger().info("imported %s into %s", ", ".join(map(str, config.input)), path)


if __name__ == "__main__":
    run_distributed(ImportConfig, main)
