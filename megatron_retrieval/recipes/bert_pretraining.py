"""BERT's pretraining, of an encoder of any family: masked language modelling on a corpus (arXiv 1810.04805)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property, partial

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.masked_lm import MASKED_LM
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.examples.masked_lm import MaskedLMDataConfig, MaskedLMDataset
from megatron_retrieval.data.layouts.lengths import require_positions
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.recipes.corpus import held_out_apart, open_corpus
from megatron_retrieval.training.adapting import adapted_run
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingConfig
from megatron_retrieval.training.starting_point import find_start, load_start
from megatron_retrieval.training.steps.masked_lm_step import MaskedLMConfig, MaskedLMStep
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.training.training_run import run_training


@dataclass(kw_only=True, frozen=True)
class BertPretrainingConfig:
    """Pretrain an encoder by masked language modelling: a BERT from random weights, or any family's from a
    checkpoint."""

    pretrained_checkpoint: str | None = field(default=None, metadata=INPUT)
    """Checkpoint whose weights, shape and vocabulary training starts from: of a masked language model, or of a dual
    encoder, which gives its encoder; default: random weights."""
    data: MaskedLMDataConfig
    training: TrainingConfig
    masked_lm: MaskedLMConfig = field(default_factory=MaskedLMConfig)
    model: EncoderShape = field(default_factory=BertConfig)

    @property
    def parallel(self) -> ParallelConfig:
        """For the launcher."""
        return self.training.parallel

    @cached_property
    def starting_point(self) -> AnyDescription | None:
        """The checkpoint that gives shape and vocabulary: the resumed one, else the pretrained one."""
        return find_start(MASKED_LM, self.training.save, self.pretrained_checkpoint)

    def with_artefact_defaults(self) -> BertPretrainingConfig:
        """The starting point's shape is the default of its flags, and bounds the length of sequences."""
        start = self.starting_point
        if start is None:
            return self
        shape = MASKED_LM.shape_from(start)
        longest = shape.max_positions or self.data.seq_length
        data = dataclasses.replace(self.data, seq_length=min(self.data.seq_length, longest))
        return dataclasses.replace(self, model=shape, data=data)


def main(config: BertPretrainingConfig, topology: ProcessTopology) -> None:
    """Train; leaves configuration, metrics and run record in `--output-dir`."""
    run_training(build, config, topology)


def build(config: BertPretrainingConfig, topology: ProcessTopology) -> Trainer:
    """Open the corpus, build the model, and make the trainer.

    Raises:
        ConfigError: the sequences are longer than the encoder's positions, or the vocabulary has no mask token.
        DataError, CheckpointError: an input cannot be used.
        MismatchError: the corpus has another vocabulary than the checkpoint to start from.
    """
    require_positions(config.model.max_positions, seq_length=config.data.seq_length)
    training, blocks, start = config.training, config.data.blocks, config.starting_point
    seed = training.seed
    corpus = open_corpus(blocks.data_path, start, MASKED_LM.vocabulary(config.model))
    dataset = partial(MaskedLMDataset, config.data, corpus, seed=seed)
    if corpus.vocabulary.special.mask is None:
        raise ConfigError(
            f"The vocabulary of {blocks.data_path} has no mask token, which a masked language model needs."
        )
    examples, held_out = held_out_apart(corpus, blocks, seed, dataset)
    shape = config.model
    if start is None:
        shape = dataclasses.replace(shape, vocab_size=corpus.vocabulary.vocab_size)
    model = MaskedLanguageModel(shape, topology, training.precision.on(topology.device), seed=seed)
    load_start(MASKED_LM, start, model, training.save, topology)
    saved = SavedModel(
        MASKED_LM.name,
        MASKED_LM.config(shape, corpus.vocabulary),
        corpus.vocabulary.assets(),
        {"number of sequences": len(examples)},
    )
    run = adapted_run(config, model, start, saved, topology, held_out=held_out)
    return run.trainer(MaskedLMStep(model, config.masked_lm, topology, seed), examples)
