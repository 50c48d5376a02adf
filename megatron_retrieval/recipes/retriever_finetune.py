"""DPR: a dual encoder fine-tuned on questions with positive and hard negative passages (arXiv 2004.04906)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Self

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.config.marks import HELD_OUT, INPUT
from megatron_retrieval.data.examples.dpr import DprDataConfig, DprDataset
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.contrastive import DualEncoderTrainingConfig, build_contrastive_trainer
from megatron_retrieval.tokenizers.vocabularies import open_encoder_vocabulary
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.training.training_run import run_training


@dataclass(kw_only=True, frozen=True)
class RetrieverFinetuneConfig(DualEncoderTrainingConfig):
    """Fine-tune a dual encoder on questions with positive and hard negative passages (DPR)."""

    vocab_file: str | None = field(default=None, metadata=INPUT)
    """WordPiece vocabulary; needed where training starts from random weights."""
    lower_case: bool = True
    """Lower-case all text, as uncased vocabularies need."""
    valid_data: tuple[str, ...] = field(default=(), metadata=HELD_OUT)
    """Held-out DPR biencoder JSON files, for evaluation during training."""
    data: DprDataConfig

    def with_artefact_defaults(self) -> Self:
        """The starting point's shape, text layout and casing are the defaults of their flags."""
        start, config = self.starting_point, super().with_artefact_defaults()
        if start is None:
            return config
        lower_case = start.vocabulary().settings().get("lower_case", config.lower_case)
        return dataclasses.replace(config, lower_case=lower_case)


def main(config: RetrieverFinetuneConfig, topology: ProcessTopology) -> None:
    """Train; leaves configuration, metrics and run record in `--output-dir`."""
    run_training(build, config, topology)


def build(config: RetrieverFinetuneConfig, topology: ProcessTopology) -> Trainer:
    """Read the data, build the model, and make the trainer.

    Raises:
        ConfigError: neither a checkpoint nor a vocabulary to start from.
        DataError, CheckpointError: an input cannot be used.
    """
    start = config.starting_point
    tokenizer = _vocabulary(config, start)
    dataset = DprDataset(config.data, config.text_format, tokenizer, config.training.seed)
    dataset.require_negatives(config.training.global_batch_size)
    held_out = None
    if config.valid_data:
        held_out = DprDataset(
            config.data.held_out(config.valid_data), config.text_format, tokenizer, config.training.seed
        )
    return build_contrastive_trainer(
        config,
        topology,
        start=start,
        tokenizer=tokenizer,
        examples=dataset,
        held_out=held_out,
        identity=config.data.identity(len(dataset)),
        bundles=dataset.bundles(),
        data_sets=dataset.data_sets(),
    )


def _vocabulary(config: RetrieverFinetuneConfig, start: AnyDescription | None) -> Vocabulary:
    """The starting point's vocabulary, or the one that `--vocab-file` names; both only if they are the same."""
    given = None if config.vocab_file is None else open_encoder_vocabulary(config.vocab_file, config.lower_case)
    if start is None:
        if given is None:
            raise ConfigError(
                "nothing to start from: give --pretrained-checkpoint, or --vocab-file to train from random weights."
            )
        return given
    saved = start.vocabulary(lower_case=config.lower_case)
    if given is not None and given.fingerprint != saved.fingerprint:
        raise ConfigError(f"--vocab-file {config.vocab_file} is not the vocabulary of the checkpoint {start.folder}.")
    return saved
