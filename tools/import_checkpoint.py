"""Turn a public BERT, DPR, sentence-transformers model or T5 into a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_retrieval.checkpoint.huggingface.models import ForeignFormat, read_model
from megatron_retrieval.checkpoint.store.reader import fill_model
from megatron_retrieval.checkpoint.store.writer import save_checkpoint
from megatron_retrieval.parallel.launch import run_distributed
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.utils.logging import get_logger


@dataclass(kw_only=True, frozen=True)
class ImportConfig:
    """Import a Hugging Face model as a checkpoint for training, embedding and evaluation."""

    format: ForeignFormat
    """Kind of the input: BertModel, DPRQuestionEncoder with DPRContextEncoder, or a sentence-transformers folder, which
    become a dual encoder; BertForMaskedLM, a masked LM; T5ForConditionalGeneration (1.0, 1.1, Flan), a T5."""
    input: tuple[Path, ...]
    """Folder of the model; for two towers a folder with question_encoder and ctx_encoder, or both, questions first."""
    output: Path
    """Folder of the checkpoint to write."""
    separate_towers: bool = False
    """Start a question tower and a passage tower from the one encoder of the input, as DPR does."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""


def main(config: ImportConfig, topology: ProcessTopology) -> None:
    imported = read_model(config.format, config.input, separate_towers=config.separate_towers)
    model = imported.empty_model(topology)
    fill_model(model, imported.weights.keys(), imported.weights.__getitem__, topology, source="the import")
    path = save_checkpoint(
        config.output,
        model,
        topology,
        kind=imported.kind,
        config=imported.checkpoint_config(),
        assets=imported.assets(),
    )
    get_logger().info("imported %s into %s", ", ".join(map(str, config.input)), path)


if __name__ == "__main__":
    run_distributed(ImportConfig, main)
