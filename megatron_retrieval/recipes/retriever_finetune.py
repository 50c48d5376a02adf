"""DPR: a dual encoder fine-tuned on questions with positive and hard negative passages (arXiv 2004.04906)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_retrieval.checkpoint.description import VOCAB_NAME
from megatron_retrieval.checkpoint.dual_encoder import KIND, checkpoint_config
from megatron_retrieval.checkpoint.starting_point import StartingPoint
from megatron_retrieval.data.dpr import DprDataConfig, DprDataset
from megatron_retrieval.data.formatting import TextFormatConfig
from megatron_retrieval.data.loader import BatchLoader, EpochSampler
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.parallel import ParallelConfig, ProcessTopology
from megatron_retrieval.recipes.starting_point import check_same_vocabulary, find_start, load_start
from megatron_retrieval.tokenizers import WordPieceTokenizer
from megatron_retrieval.training.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingConfig, build_trainer
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.types import ContrastiveBatch


@dataclass(kw_only=True, frozen=True)
class RetrieverFinetuneConfig:
    """Fine-tune a dual encoder on questions with positive and hard negative passages (DPR)."""

    pretrained_checkpoint: str | None = None
    """Checkpoint whose weights, shape, text layout and vocabulary training starts from: of a dual encoder, or of a
    masked language model, whose encoder goes into both towers; default: random weights."""
    vocab_file: str | None = None
    """WordPiece vocabulary; needed where training starts from random weights."""
    lower_case: bool = True
    """Lower-case all text, as uncased vocabularies need."""
    valid_data: tuple[str, ...] = ()
    """Held-out DPR biencoder JSON files, for evaluation during training."""
    data: DprDataConfig
    training: TrainingConfig
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    text_format: TextFormatConfig = field(default_factory=TextFormatConfig)
    model: DualEncoderConfig = field(default_factory=DualEncoderConfig)

    @property
    def parallel(self) -> ParallelConfig:
        """For the launcher."""
        return self.training.parallel

    def starting_point(self) -> StartingPoint | None:
        """The checkpoint that gives shape, text layout and vocabulary: the resumed one, else the pretrained one."""
        return find_start(self.training.save, self.pretrained_checkpoint, KIND)

    def with_artefact_defaults(self) -> RetrieverFinetuneConfig:
        """The starting point's shape and text layout are the defaults of their flags."""
        start = self.starting_point()
        if start is None:
            return self
        return dataclasses.replace(
            self,
            model=start.dual_encoder_over(self.model),
            text_format=start.text_format_over(self.text_format),
            lower_case=start.lower_case,
        )


def build(config: RetrieverFinetuneConfig, topology: ProcessTopology) -> Trainer:
    """Read the data, build the model, and make the trainer.

    Raises:
        ConfigError: neither a checkpoint nor a vocabulary to start from.
        DataError, CheckpointError: an input cannot be used.
    """
    start = config.starting_point()
    vocab_file = _vocab_file(config, start)
    tokenizer = WordPieceTokenizer(vocab_file, config.lower_case)
    seed = config.training.seed
    dataset = DprDataset(config.data, config.text_format, tokenizer, seed)
    sampler = EpochSampler(len(dataset), config.training.global_batch_size, seed, bundles=dataset.bundles())
    shape = config.model
    if start is None:
        shape = dataclasses.replace(shape, bert=dataclasses.replace(shape.bert, vocab_size=tokenizer.vocab_size))
    model = DualEncoder(shape, topology, config.training.precision.dtype, seed=seed)
    load_start(start, model, config.training.save, topology)
    return build_trainer(
        config.training,
        topology,
        model=model,
        step=ContrastiveStep(model, config.contrastive, topology, seed),
        num_examples=len(dataset),
        batches=BatchLoader(dataset, sampler, topology.dp_rank, topology.dp_size).iterate,
        valid_batches=_valid_batches(config, tokenizer, topology),
        saved=SavedModel(
            KIND,
            checkpoint_config(shape, config.text_format, config.lower_case),
            {VOCAB_NAME: vocab_file.read_bytes()},
            {
                "--seed": seed,
                "--global-batch-size": config.training.global_batch_size,
                "number of training questions": len(dataset),
            },
        ),
    )


def _vocab_file(config: RetrieverFinetuneConfig, start: StartingPoint | None) -> Path:
    """The starting point's vocabulary, or the one that `--vocab-file` names; both only if they are the same."""
    if config.vocab_file is None:
        if start is None:
            raise ConfigError(
                "nothing to start from: give --pretrained-checkpoint, or --vocab-file to train from random weights."
            )
        return start.vocab_file
    path = Path(config.vocab_file)
    check_same_vocabulary(path, f"--vocab-file {path}", config.lower_case, start)
    return path


def _valid_batches(
    config: RetrieverFinetuneConfig, tokenizer: WordPieceTokenizer, topology: ProcessTopology
) -> Callable[[], Iterator[ContrastiveBatch]] | None:
    """Held-out questions in file order, once through; None without `--valid-data`."""
    if not config.valid_data:
        return None
    data = dataclasses.replace(config.data, train_data=config.valid_data, max_train_questions=None)
    dataset = DprDataset(data, config.text_format, tokenizer, config.training.seed)
    sampler = EpochSampler(len(dataset), config.training.global_batch_size, config.training.seed, shuffle=False)
    loader = BatchLoader(dataset, sampler, topology.dp_rank, topology.dp_size)
    num_batches = min(sampler.batches_per_epoch, config.training.evaluation.eval_iters or sampler.batches_per_epoch)
    return lambda: itertools.islice(loader.iterate(0), num_batches)
