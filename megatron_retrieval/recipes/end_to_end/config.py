"""Retriever and reader trained together, from questions and answers alone (Sachan et al. 2021, arXiv 2101.00408)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, DualEncoderDescription
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.reader import ReaderDescription
from megatron_retrieval.checkpoint.kinds.registry import describe
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.choices import OneOf
from megatron_retrieval.config.marks import HELD_OUT, INPUT
from megatron_retrieval.config.parser import overlaid
from megatron_retrieval.data.examples.open_questions import AskedDataConfig
from megatron_retrieval.data.layouts.lengths import within_positions
from megatron_retrieval.data.layouts.sequences import TextSizesConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.adapters import LoraConfig
from megatron_retrieval.models.end_to_end import FreezeConfig
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig
from megatron_retrieval.parallel.topology import EmbeddingRanksConfig
from megatron_retrieval.readers.kind import ReaderKind
from megatron_retrieval.readers.registry import READERS, describe_reader
from megatron_retrieval.readers.settings import ReaderAnswersConfig, ReaderLayoutConfig, ReaderSettings
from megatron_retrieval.refresh.config import IndexRefreshConfig
from megatron_retrieval.training.learning_rate import rate_multipliers
from megatron_retrieval.training.overrides import ModelOverridesConfig
from megatron_retrieval.training.run import TrainingConfig
from megatron_retrieval.training.steps.end_to_end_objectives import OBJECTIVES
from megatron_retrieval.training.steps.end_to_end_step import EndToEndStepConfig
from megatron_retrieval.training.steps.passage_search import TopkConfig
from megatron_retrieval.training.tasks.end_to_end_evaluation import AnsweringConfig

#: the parts of a checkpoint, each a checkpoint by itself, and the kind of the whole
RETRIEVER, READER, KIND = "retriever", "reader", "end-to-end"


@dataclass(kw_only=True, frozen=True)
class AskedTrainingDataConfig(Checked):
    """Questions to learn from, and questions held out."""

    train: AskedDataConfig
    valid_data: tuple[str, ...] = field(default=(), metadata=HELD_OUT)
    """Held-out files of the same kinds: loss, recall, exact match and F1 during training."""
    max_valid_questions: PositiveInt | None = None
    """Use only the first questions of the held-out files; default: all."""

    def held_out(self) -> AskedDataConfig | None:
        """The files to evaluate on."""
        if not self.valid_data:
            return None
        asked = dataclasses.replace(self.train.asked, max_questions=self.max_valid_questions, question_stride=1)
        return dataclasses.replace(self.train, train_data=self.valid_data, asked=asked)


@dataclass(kw_only=True, frozen=True)
class ModuleRatesConfig:
    """Learning rates of the parts."""

    retriever_lr: float | None = None
    """Peak learning rate of the retriever; default: --lr."""
    reader_lr: float | None = None
    """Peak learning rate of the reader; default: --lr."""
    score_weight_lr: float | None = None
    """Peak learning rate of the weight of scores in the reader's attention (joint-topk), which moves by up to as much
    at each step; default: --lr, which leaves it about where it starts."""

    def multipliers(self, lr: float) -> dict[str, float]:
        """Factors of `lr`, by prefix of the parameters' names.

        Raises:
            ConfigError: there is no rate to multiply.
        """
        given = {f"{RETRIEVER}.": self.retriever_lr, f"{READER}.": self.reader_lr, "score_weight": self.score_weight_lr}
        return rate_multipliers(given, lr, "--retriever-lr, --reader-lr and --score-weight-lr follow")


@dataclass(kw_only=True, frozen=True)
class EndToEndTrainingConfig(TrainingConfig):
    """How long, with what, and where to."""

    parallel: EmbeddingRanksConfig = field(default_factory=EmbeddingRanksConfig)


@dataclass(kw_only=True, frozen=True)
class EndToEndConfig:
    """What every job has that trains a retriever and a reader together; its own class narrows the type of `data`."""

    retriever: Path = field(metadata=INPUT)
    """Checkpoint of the dual encoder that training starts from."""
    reader: Path = field(metadata=INPUT)
    """Checkpoint of the reader that training starts from: a fusion reader, a T5, a causal reader or language model, or
    an extractive reader, which learns by --objective individual-topk."""
    reader_kind: Annotated[str, OneOf(READERS)] | None = None
    """Kind of reader to make of --reader where that is a BERT (a dual encoder, a masked language model); default:
    --reader is a reader."""
    evidence: Path = field(metadata=INPUT)
    """Folder of the evidence (build evidence), with the retriever's vocabulary."""
    separate_encoders: bool = False
    """Where the retriever has one encoder for questions and passages, train two that begin as copies of it."""
    share_frozen_weights: bool = False
    """Checkpoints refer to --retriever and --reader for frozen weights instead of copying them. Do not move or delete
    these two folders; if their paths are relative, move them together with the checkpoints."""
    lora_parts: tuple[Literal["retriever", "reader"], ...] = ("retriever", "reader")
    """Which of the two --lora-rank adapts; the other one is trained in full, or by the adapters that it has. A frozen
    one gets none."""
    data: Any
    training: EndToEndTrainingConfig
    step: EndToEndStepConfig = field(default_factory=EndToEndStepConfig)
    search: TopkConfig = field(default_factory=TopkConfig)
    index: IndexRefreshConfig = field(default_factory=IndexRefreshConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    rates: ModuleRatesConfig = field(default_factory=ModuleRatesConfig)
    model: ModelOverridesConfig = field(default_factory=ModelOverridesConfig)
    text_format: TextSizesConfig = field(default_factory=TextSizesConfig)
    layout: ReaderLayoutConfig = field(default_factory=ReaderLayoutConfig)
    answers: ReaderAnswersConfig = field(default_factory=ReaderAnswersConfig)
    encode: FusionEncodeConfig = field(default_factory=FusionEncodeConfig)
    answering: AnsweringConfig = field(default_factory=AnsweringConfig)

    def __post_init__(self) -> None:
        self._require_something_to_train()
        interval = self.index.index_refresh_interval
        if interval is None and self.parallel.num_embedding_ranks:
            raise ConfigError("--num-embedding-ranks have nothing to do without --index-refresh-interval.")
        if self.training.grid.lr_grid and self.parallel.num_embedding_ranks:
            raise ConfigError("--num-embedding-ranks serve one run: leave them out with --lr-grid.")
        if interval is not None and self.freeze.freeze_passage_encoder:
            raise ConfigError("--freeze-passage-encoder keeps the index right: leave out --index-refresh-interval.")

    def _require_something_to_train(self) -> None:
        objective, freeze = OBJECTIVES[self.step.objective], self.freeze
        if not objective.trains_retriever and freeze.freeze_reader:
            raise ConfigError(
                f"--objective {objective.name} trains only the reader: --freeze-reader leaves nothing to train."
            )
        if not objective.trains_reader and freeze.freeze_query_encoder and freeze.freeze_passage_encoder:
            raise ConfigError(
                f"--objective {objective.name} trains only the retriever: --freeze-query-encoder "
                "--freeze-passage-encoder leave nothing to train."
            )

    def lora_of(self, part: str) -> LoraConfig:
        """The adapters to train of one of the two."""
        freeze = self.frozen
        is_frozen = (
            freeze.freeze_reader if part == READER else freeze.freeze_query_encoder and freeze.freeze_passage_encoder
        )
        return self.training.lora if part in self.lora_parts and not is_frozen else LoraConfig()

    @property
    def frozen(self) -> FreezeConfig:
        """What keeps its weights. What gets no gradient is frozen as well: weight decay would shrink it."""
        frozen, objective = self.freeze, OBJECTIVES[self.step.objective]
        if not objective.trains_retriever:
            frozen = dataclasses.replace(frozen, freeze_query_encoder=True, freeze_passage_encoder=True)
        return frozen if objective.trains_reader else dataclasses.replace(frozen, freeze_reader=True)

    @property
    def parallel(self) -> EmbeddingRanksConfig:
        """For the launcher."""
        return self.training.parallel

    @cached_property
    def start_retriever(self) -> DualEncoderDescription:
        """What gives the retriever's shape, layout and vocabulary: the resumed one, else that of the start."""
        folder = self.training.save.resume_folder
        return DUAL_ENCODER.describe(folder / RETRIEVER if folder else self.retriever)

    @cached_property
    def start_reader(self) -> tuple[ReaderKind, AnyDescription]:
        """Likewise of the reader, with its kind."""
        if folder := self.training.save.resume_folder:
            return describe_reader(folder / READER)
        if self.reader_kind is None:
            return describe_reader(self.reader)
        kind = READERS[self.reader_kind]
        return kind, describe(self.reader, kind.checkpoints.starts_from)

    def reader_settings(self, kind: ReaderKind, start: AnyDescription) -> ReaderSettings:
        """What the reader is built with; settings of its layout that no flag has are the start's."""
        shape = self.model.over(kind.checkpoints.shape_from(start))
        layout = overlaid(_layout_of(kind, start), self.layout)
        return ReaderSettings(shape, layout, self.answers.of(kind.answers, kind.name), self.encode)

    def with_artefact_defaults(self) -> Self:
        """The layouts of retriever and reader are the defaults of their flags, and so is the weight of scores that a
        reader has learned."""
        (kind, reader), step = self.start_reader, self.step
        max_positions = kind.checkpoints.shape_from(reader).max_positions
        saved_layout = within_positions(_layout_of(kind, reader), max_positions)
        if isinstance(reader, ReaderDescription) and reader.passage_scores.passage_score_use == "bias":
            step = dataclasses.replace(step, score_weight=reader.passage_scores.passage_score_weight)
        text_format = overlaid(self.text_format, self.start_retriever.layout)
        return dataclasses.replace(self, layout=overlaid(self.layout, saved_layout), text_format=text_format, step=step)


def _layout_of(kind: ReaderKind, start: AnyDescription) -> Any:
    """A reader's own layout; the kind's where training starts from something else."""
    return (start.layout if start.kind.name in kind.checkpoints.reads else None) or kind.layout()


@dataclass(kw_only=True, frozen=True)
class EndToEndFinetuneConfig(EndToEndConfig):
    """Train a retriever and a reader together, from questions and answers alone."""

    data: AskedTrainingDataConfig
