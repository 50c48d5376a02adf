"""Retriever and reader trained together, from questions and answers alone (Sachan et al. 2021, arXiv 2101.00408)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from megatron_retrieval.checkpoint.kinds.any_reader import ReaderDescription, describe_reader
from megatron_retrieval.checkpoint.kinds.dual_encoder import DualEncoderDescription, describe_dual_encoder
from megatron_retrieval.config.parser import from_flat_dict, to_flat_dict
from megatron_retrieval.data.examples.open_questions import AskedDataConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.end_to_end import FreezeConfig
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig
from megatron_retrieval.parallel.topology import EmbeddingRanksConfig
from megatron_retrieval.recipes.lengths import within_positions
from megatron_retrieval.recipes.reader_answers import AnyFormatConfig, ReaderAnswersConfig
from megatron_retrieval.recipes.reader_training import ReaderModelConfig
from megatron_retrieval.refresh.config import IndexRefreshConfig
from megatron_retrieval.training.run import TrainingConfig
from megatron_retrieval.training.steps.end_to_end_objectives import OBJECTIVES
from megatron_retrieval.training.steps.end_to_end_step import EndToEndStepConfig
from megatron_retrieval.training.steps.passage_search import TopkConfig
from megatron_retrieval.training.tasks.end_to_end_evaluation import AnsweringConfig

#: the parts of a checkpoint, each a checkpoint by itself, and the kind of the whole
RETRIEVER, READER, KIND = "retriever", "reader", "end-to-end"


@dataclass(kw_only=True, frozen=True)
class AskedTrainingDataConfig:
    """Questions to learn from, and questions held out."""

    train: AskedDataConfig
    valid_data: tuple[str, ...] = ()
    """Held-out files of the same kinds: loss, recall, exact match and F1 during training."""
    max_valid_questions: int | None = None
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

    def multipliers(self, lr: float) -> dict[str, float]:
        """Of the rate `lr`, by the beginning of the parameters' names.

        Raises:
            ConfigError: there is no rate to multiply.
        """
        given = {RETRIEVER: self.retriever_lr, READER: self.reader_lr}
        chosen = {f"{part}.": rate for part, rate in given.items() if rate is not None}
        if chosen and lr <= 0:
            raise ConfigError("--retriever-lr and --reader-lr follow the schedule of --lr, which must be above 0.")
        return {prefix: rate / lr for prefix, rate in chosen.items()}


@dataclass(kw_only=True, frozen=True)
class EndToEndTrainingConfig(TrainingConfig):
    """How long, with what, and where to."""

    parallel: EmbeddingRanksConfig = field(default_factory=EmbeddingRanksConfig)


@dataclass(kw_only=True, frozen=True)
class EndToEndFinetuneConfig:
    """Train a retriever and a reader together, from questions and answers alone."""

    retriever: Path
    """Checkpoint of the dual encoder that training starts from."""
    reader: Path
    """Checkpoint of the reader that training starts from: a fusion reader, a T5, or an extractive reader, which learns
    by --objective individual-topk."""
    evidence: Path
    """Folder of the evidence (tools/build_evidence.py), with the retriever's vocabulary."""
    separate_encoders: bool = False
    """Where the retriever has one encoder for questions and passages, train two that begin as copies of it."""
    data: AskedTrainingDataConfig
    training: EndToEndTrainingConfig
    step: EndToEndStepConfig = field(default_factory=EndToEndStepConfig)
    search: TopkConfig = field(default_factory=TopkConfig)
    index: IndexRefreshConfig = field(default_factory=IndexRefreshConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    rates: ModuleRatesConfig = field(default_factory=ModuleRatesConfig)
    model: ReaderModelConfig = field(default_factory=ReaderModelConfig)
    text_format: TextFormatConfig = field(default_factory=TextFormatConfig)
    layout: AnyFormatConfig = field(default_factory=AnyFormatConfig)
    answers: ReaderAnswersConfig = field(default_factory=ReaderAnswersConfig)
    encode: FusionEncodeConfig = field(default_factory=FusionEncodeConfig)
    answering: AnsweringConfig = field(default_factory=AnsweringConfig)

    def __post_init__(self) -> None:
        if not self._trains_retriever and self.freeze.freeze_reader:
            raise ConfigError(
                f"--objective {self.step.objective} trains only the reader: --freeze-reader leaves nothing to train."
            )
        interval = self.index.index_refresh_interval
        if interval is None and self.parallel.num_embedding_ranks:
            raise ConfigError("--num-embedding-ranks have nothing to do without --index-refresh-interval.")
        if interval is not None and self.freeze.freeze_passage_encoder:
            raise ConfigError("--freeze-passage-encoder keeps the index right: leave out --index-refresh-interval.")

    @property
    def frozen(self) -> FreezeConfig:
        """What keeps its weights; a retriever without a gradient does too, which would only decay."""
        if self._trains_retriever:
            return self.freeze
        return dataclasses.replace(self.freeze, freeze_query_encoder=True, freeze_passage_encoder=True)

    @property
    def _trains_retriever(self) -> bool:
        return OBJECTIVES[self.step.objective].trains_retriever

    @property
    def parallel(self) -> EmbeddingRanksConfig:
        """For the launcher."""
        return self.training.parallel

    def starting_points(self) -> tuple[DualEncoderDescription, ReaderDescription]:
        """Retriever and reader that give shape, layout and vocabulary: the resumed ones, else those of the start."""
        if folder := self.training.save.resume_folder():
            return describe_dual_encoder(folder / RETRIEVER), describe_reader(folder / READER)
        return describe_dual_encoder(self.retriever), describe_reader(self.reader)

    def with_artefact_defaults(self) -> EndToEndFinetuneConfig:
        """The layouts of retriever and reader are the defaults of their flags, and so is the weight of scores that a
        reader has learned."""
        retriever, reader = self.starting_points()
        saved = {} if reader.layout is None else to_flat_dict(reader.layout)
        layout = from_flat_dict(AnyFormatConfig, {**to_flat_dict(self.layout), **saved})
        layout, step = within_positions(layout, reader.config), self.step
        if reader.passage_scores.passage_score_use == "bias":
            step = dataclasses.replace(step, score_weight=reader.passage_scores.passage_score_weight)
        return dataclasses.replace(self, layout=layout, text_format=retriever.text_format, step=step)
