"""T5's pretraining: spans taken out of the texts of a corpus are to be written (arXiv 1910.10683, section 3.1.4)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property, partial

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.t5 import T5_KIND
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.examples.span_corruption import SpanCorruptionDataConfig, SpanCorruptionDataset
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.recipes.corpus import held_out_apart, open_corpus
from megatron_retrieval.training.adapting import adapted_run
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingConfig
from megatron_retrieval.training.starting_point import find_start, load_start
from megatron_retrieval.training.steps.span_corruption_step import SpanCorruptionConfig, SpanCorruptionStep
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.training.training_run import run_training


@dataclass(kw_only=True, frozen=True)
class T5PretrainingConfig:
    """Pretrain a T5 by span corruption."""

    pretrained_checkpoint: str | None = field(default=None, metadata=INPUT)
    """Checkpoint of a T5 whose weights, shape and vocabulary training starts from; default: random weights, and as many
    word embeddings as the corpus's vocabulary has entries."""
    data: SpanCorruptionDataConfig
    training: TrainingConfig
    span_corruption: SpanCorruptionConfig = field(default_factory=SpanCorruptionConfig)
    model: T5Config = field(default_factory=T5Config)

    @property
    def parallel(self) -> ParallelConfig:
        """For the launcher."""
        return self.training.parallel

    @cached_property
    def starting_point(self) -> AnyDescription | None:
        """The checkpoint that gives shape and vocabulary: the resumed one, else the pretrained one."""
        return find_start(T5_KIND, self.training.save, self.pretrained_checkpoint)

    def with_artefact_defaults(self) -> T5PretrainingConfig:
        """The starting point's shape is the default of its flags; without one, the corpus has a vocabulary."""
        start = self.starting_point
        if start is not None:
            return dataclasses.replace(self, model=start.shape)
        vocab_size = open_corpus(self.data.blocks.data_path, None, T5_KIND.vocabulary_name).vocabulary.vocab_size
        return dataclasses.replace(self, model=dataclasses.replace(self.model, vocab_size=vocab_size))


def main(config: T5PretrainingConfig, topology: ProcessTopology) -> None:
    """Train; leaves configuration, metrics and run record in `--output-dir`."""
    run_training(build, config, topology)


def build(config: T5PretrainingConfig, topology: ProcessTopology) -> Trainer:
    """Open the corpus, build the model, and make the trainer.

    Raises:
        ConfigError: the vocabulary has more entries than the model has word embeddings.
        DataError, CheckpointError: an input cannot be used.
        MismatchError: the corpus has another vocabulary than the checkpoint to start from, or one of another kind.
    """
    training, blocks, start = config.training, config.data.blocks, config.starting_point
    seed, shape = training.seed, config.model
    corpus = open_corpus(blocks.data_path, start, T5_KIND.vocabulary_name)
    tokenizer = corpus.vocabulary
    if shape.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"--vocab-size {shape.vocab_size} is less than the {tokenizer.vocab_size} entries of the vocabulary of "
            f"{corpus.folder}; leave it out, or raise it."
        )
    dataset = partial(SpanCorruptionDataset, config.data, corpus, seed=seed)
    examples, held_out = held_out_apart(corpus, blocks, seed, dataset)
    model = T5(shape, topology, training.precision.on(topology.device), seed=seed)
    load_start(T5_KIND, start, model, training.save, topology)
    saved = SavedModel(
        T5_KIND.name,
        T5_KIND.config(shape, tokenizer),
        tokenizer.assets(),
        {"number of sequences": len(examples)},
    )
    run = adapted_run(config, model, start, saved, topology, held_out=held_out)
    return run.trainer(SpanCorruptionStep(model, config.span_corruption, topology, seed), examples)
