"""RETRO's pretraining (arXiv 2112.04426): a language model that reads neighbours, from scratch or beside a frozen
one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.retro import RETRO
from megatron_retrieval.checkpoint.store.base import BaseCheckpoint
from megatron_retrieval.config.checks import Checked, Fraction, PositiveInt
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.examples.neighbour_arms import choose_swapped
from megatron_retrieval.data.examples.retro import RetroDataset, chosen_documents
from megatron_retrieval.data.examples.retro_texts import RetroTexts
from megatron_retrieval.data.layouts.lengths import require_positions
from megatron_retrieval.data.stores.chunks import ChunkStore, SectionChoice
from megatron_retrieval.data.stores.neighbors import NeighborStore, Split
from megatron_retrieval.errors import ConfigError, MismatchError
from megatron_retrieval.models.retro import Retro, RetroConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.training.adapting import saved_base
from megatron_retrieval.training.learning_rate import rate_multipliers
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingConfig, TrainingRun
from megatron_retrieval.training.starting_point import find_start, load_start
from megatron_retrieval.training.steps.retro_step import RetroStep, RetroStepConfig
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.training.training_run import run_training
from megatron_retrieval.utils.logging import get_logger

log = get_logger("retro")


@dataclass(kw_only=True, frozen=True)
class RetroDataConfig(Checked):
    """Sequences of chunks, and their neighbours."""

    retro_chunks: str = field(metadata=INPUT)
    """Folder of the chunk store to train on."""
    retro_neighbors: str = field(metadata=INPUT)
    """Folder of the neighbours of its chunks."""
    seq_length: PositiveInt = 2048
    """Tokens of a sequence, a multiple of the chunk length."""
    retro_num_neighbors: PositiveInt = 2
    """Neighbours that are read for a chunk: the nearest of those that were saved."""
    retro_sections: SectionChoice = "all"
    """Of texts cut into sections, train on those of this parity alone."""
    retro_arm: Literal["on", "swapped"] = "on"
    """swapped: the neighbours of another document's chunk, to compare with."""
    retro_add_retriever: bool = True
    """Off: the same model on the same texts without neighbours, likewise."""
    retro_drop_neighbors: Fraction = 0.0
    """Share of the chunks that are trained without neighbours, so that a model from scratch learns to do without."""


@dataclass(kw_only=True, frozen=True)
class RetroPretrainingConfig:
    """Pretrain a RETRO, or add retrieval to a causal language model."""

    pretrained_checkpoint: str | None = field(default=None, metadata=INPUT)
    """Checkpoint of a causal language model, which is frozen and learns to read neighbours, or of a RETRO; default:
    random weights, all of which are trained."""
    retro_train_base: bool = False
    """Train the weights of --pretrained-checkpoint as well."""
    retro_gate_lr: float | None = None
    """Peak learning rate of the gates that --retro-cca-init self-attention closes at first, each of which moves by up
    to as much at a step; default: --lr, which hardly opens them in hundreds of steps."""
    data: RetroDataConfig
    training: TrainingConfig
    step: RetroStepConfig = field(default_factory=RetroStepConfig)
    model: RetroConfig = field(default_factory=RetroConfig)

    def __post_init__(self) -> None:
        if self.training.lora.lora_rank:
            raise ConfigError("--lora-rank: a RETRO has no adapters; the weights that read neighbours are trained.")
        if self.freezes and not self.data.retro_add_retriever:
            raise ConfigError("--no-retro-add-retriever: a frozen model learns nothing then; give --retro-train-base.")
        self.multipliers()  # refuses a rate that has nothing to follow

    @property
    def parallel(self) -> ParallelConfig:
        """For the launcher."""
        return self.training.parallel

    @property
    def freezes(self) -> bool:
        """Only what reads neighbours is trained."""
        return self.pretrained_checkpoint is not None and not self.retro_train_base

    def multipliers(self) -> dict[str, float]:
        """Factors of `--lr`, by prefix of the parameters' names.

        Raises:
            ConfigError: there is no rate to multiply.
        """
        rates = {"*.cross_attention.gate": self.retro_gate_lr}
        return rate_multipliers(rates, self.training.optimizer.lr, "--retro-gate-lr follows")

    @cached_property
    def starting_point(self) -> AnyDescription | None:
        """The checkpoint that gives shape and vocabulary: the resumed one, else the pretrained one."""
        return find_start(RETRO, self.training.save, self.pretrained_checkpoint)

    @cached_property
    def chunks(self) -> ChunkStore:
        """What is trained on."""
        return ChunkStore(self.data.retro_chunks)

    def with_artefact_defaults(self) -> RetroPretrainingConfig:
        """The starting point's shape is the default of its flags; without one, the chunks have a vocabulary."""
        start, length = self.starting_point, self.chunks.chunk_length
        if start is None:
            vocab_size = self.chunks.vocabulary.vocab_size
            shape = dataclasses.replace(self.model, retro_chunk_length=length, vocab_size=vocab_size)
        else:
            shape = RETRO.shape_from(start, dataclasses.replace(self.model, retro_chunk_length=length))
        if self.freezes:  # frozen weights are not regularised
            shape = dataclasses.replace(shape, hidden_dropout=0.0, attention_dropout=0.0)
        return dataclasses.replace(self, model=shape)


def main(config: RetroPretrainingConfig, topology: ProcessTopology) -> None:
    """Train; leaves configuration, metrics and run record in `--output-dir`."""
    run_training(build, config, topology)


def build(config: RetroPretrainingConfig, topology: ProcessTopology) -> Trainer:
    """Open chunks and neighbours, build the model, and make the trainer.

    Raises:
        ConfigError: the model does not fit the sequences or the vocabulary.
        DataError, CheckpointError: an input cannot be used.
        MismatchError: the chunks have another vocabulary or length than the model.
    """
    training, start, shape, chunks = config.training, config.starting_point, config.model, config.chunks
    require_chunks(chunks, shape, start)
    require_positions(shape.max_positions, seq_length=config.data.seq_length)
    if config.retro_gate_lr is not None and shape.retro_cca_init != "self-attention":
        raise ConfigError("--retro-gate-lr: only --retro-cca-init self-attention has gates.")
    neighbors = NeighborStore(config.data.retro_neighbors, chunks)
    examples = _texts(config, neighbors, "train")
    has_held_out = len(chosen_documents(neighbors, "valid", config.data.retro_sections))
    held_out = _texts(config, neighbors, "valid") if has_held_out else None
    model = Retro(shape, topology, training.precision.on(topology.device), seed=training.seed)
    load_start(RETRO, start, model, training.save, topology)
    base = _freeze(config, model) if config.freezes else None
    identity = {"number of sequences": len(examples), "--retro-train-base": config.retro_train_base}
    vocabulary = chunks.vocabulary
    saved = SavedModel(RETRO.name, RETRO.config(shape, vocabulary), vocabulary.assets(), identity, base=base)
    run = TrainingRun(config, topology, model, saved, config.multipliers())
    run.evaluate(held_out)
    run.resume()
    return run.trainer(RetroStep(model, config.step, topology, training.seed), examples)


def require_chunks(chunks: ChunkStore, shape: RetroConfig, start: AnyDescription | None) -> None:
    """Refuse chunks that a model of this shape cannot read.

    Args:
        start: the checkpoint that gives the vocabulary.

    Raises:
        ConfigError: the vocabulary has more entries than the model has word embeddings.
        MismatchError: they have another vocabulary or length.
    """
    chunks.require_kind(RETRO.vocabulary_name)
    if start is not None:
        chunks.require_vocabulary(start.vocabulary(), f"the checkpoint {start.folder}")
    if chunks.chunk_length != shape.retro_chunk_length:
        raise MismatchError(
            f"{chunks.folder} has chunks of {chunks.chunk_length} tokens, the model of {shape.retro_chunk_length}; "
            "build chunks of that length, or start from another checkpoint."
        )
    if shape.vocab_size < chunks.vocabulary.vocab_size:
        raise ConfigError(
            f"--vocab-size {shape.vocab_size} is less than the {chunks.vocabulary.vocab_size} entries of the "
            f"vocabulary of {chunks.folder}; leave it out, or raise it."
        )


def _texts(config: RetroPretrainingConfig, neighbors: NeighborStore, split: Split) -> RetroTexts:
    data, seed, chunks = config.data, config.training.seed, config.chunks
    choose = None
    if data.retro_arm == "swapped":
        choose = choose_swapped(neighbors, np.flatnonzero(chunks.goes_on(np.arange(len(chunks)))), seed)
    sequences = RetroDataset(
        neighbors,
        seq_length=data.seq_length,
        num_neighbors=data.retro_num_neighbors if data.retro_add_retriever else 0,
        split=split,
        sections=data.retro_sections,
        choose=choose,
        seed=seed,
    )
    return RetroTexts(sequences, drop=data.retro_drop_neighbors if split == "train" else 0.0, seed=seed)


def _freeze(config: RetroPretrainingConfig, model: Retro) -> BaseCheckpoint | None:
    """Leave to training what reads neighbours; returns the checkpoint that holds the rest."""
    names, start = model.base_names(), config.starting_point
    assert start is not None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.info("%s is frozen; %s weights that read neighbours are trained", start.folder, f"{num_trained:,}")
    return saved_base(start) if config.training.save.resume_folder else BaseCheckpoint(start.folder)
