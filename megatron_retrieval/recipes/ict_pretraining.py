"""ICT: a dual encoder trained without labels, to find the block that a sentence was taken from (arXiv 1906.00300)."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.data.examples.ict import IctDataConfig, ict_datasets
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.contrastive import DualEncoderTrainingConfig, build_contrastive_trainer
from megatron_retrieval.recipes.corpus import open_corpus
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.training.training_run import run_training


@dataclass(kw_only=True, frozen=True)
class IctPretrainingConfig(DualEncoderTrainingConfig):
    """Pretrain a dual encoder by the Inverse Cloze Task."""

    data: IctDataConfig


def main(config: IctPretrainingConfig, topology: ProcessTopology) -> None:
    """Train; leaves configuration, metrics and run record in `--output-dir`."""
    run_training(build, config, topology)


def build(config: IctPretrainingConfig, topology: ProcessTopology) -> Trainer:
    """Open the corpus, build the model, and make the trainer.

    Raises:
        DataError, CheckpointError: an input cannot be used.
        MismatchError: the corpus has another vocabulary than the checkpoint to start from.
    """
    start = config.starting_point
    corpus = open_corpus(config.data.blocks.data_path, start, DUAL_ENCODER.vocabulary(config.model))
    examples, held_out = ict_datasets(corpus, config.data, config.text_format, config.training.seed)
    return build_contrastive_trainer(
        config,
        topology,
        start=start,
        tokenizer=corpus.vocabulary,
        examples=examples,
        held_out=held_out if len(held_out) else None,
        identity={"number of blocks": len(examples)},
    )
