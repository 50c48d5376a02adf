"""An extractive reader fine-tuned on questions with the passages that a retriever found for them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from megatron_retrieval.checkpoint.kinds.extractive_reader import (
    KIND,
    describe_extractive_reader,
    extractive_reader_checkpoint_config,
)
from megatron_retrieval.checkpoint.kinds.starting_point import READER_STARTING_KINDS, StartingPoint
from megatron_retrieval.data.examples.extractive import ExtractiveDataset
from megatron_retrieval.data.examples.extractive_examples import ExtractiveDataConfig
from megatron_retrieval.data.files.passage_questions import (
    QuestionCensus,
    ReaderQuestion,
    ReaderTrainingDataConfig,
    read_training_questions,
)
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.exact_match import AnswerScoreConfig
from megatron_retrieval.evaluation.extractive_answers import ExtractiveAnswerConfig, ExtractiveAnswerer
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.recipes.lengths import require_positions, within_positions
from megatron_retrieval.recipes.reader_training import ReaderDataConfig, ReaderModelConfig
from megatron_retrieval.recipes.starting_point import find_start, load_start
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingConfig, TrainingRun
from megatron_retrieval.training.steps.extractive_step import ExtractiveStep, ExtractiveStepConfig
from megatron_retrieval.training.tasks.answers import GivenPassagesTask
from megatron_retrieval.training.trainer import Trainer


@dataclass(kw_only=True, frozen=True)
class ExtractiveFinetuneConfig:
    """Fine-tune an extractive reader: BERT that points to the answer in one of the passages (DPR)."""

    pretrained_checkpoint: str | None = None
    """Checkpoint whose encoder, vocabulary and, if it is a reader, heads and layout training starts from: of a masked
    language model, a dual encoder (its passage tower) or a reader of this kind."""
    data: ReaderDataConfig
    training: TrainingConfig
    model: ReaderModelConfig = field(default_factory=ReaderModelConfig)
    layout: ExtractiveFormatConfig = field(default_factory=ExtractiveFormatConfig)
    draw: ExtractiveDataConfig = field(default_factory=ExtractiveDataConfig)
    answers: ExtractiveAnswerConfig = field(default_factory=ExtractiveAnswerConfig)
    step: ExtractiveStepConfig = field(default_factory=ExtractiveStepConfig)
    scoring: AnswerScoreConfig = field(default_factory=AnswerScoreConfig)

    @property
    def parallel(self) -> ParallelConfig:
        """For the launcher."""
        return self.training.parallel

    def starting_point(self) -> StartingPoint:
        """The checkpoint that gives shape and vocabulary: the resumed one, else the pretrained one.

        Raises:
            ConfigError: neither is given.
        """
        start = find_start(self.training.save, self.pretrained_checkpoint, KIND, READER_STARTING_KINDS)
        if start is None:
            raise ConfigError("nothing to start from: give --pretrained-checkpoint, a trained encoder or reader.")
        return start

    def with_artefact_defaults(self) -> ExtractiveFinetuneConfig:
        """A reader's layout is the default of its flags; sequences are no longer than the encoder's positions."""
        start = self.starting_point()
        layout = describe_extractive_reader(start.folder).layout if start.kind == KIND else self.layout
        return dataclasses.replace(self, layout=within_positions(layout, start.bert))


def build(config: ExtractiveFinetuneConfig, topology: ProcessTopology) -> Trainer:
    """Read the data, build the model, and make the trainer.

    Raises:
        ConfigError: no checkpoint to start from, or sequences longer than its positions.
        DataError, CheckpointError: an input cannot be used.
    """
    training, start = config.training, config.starting_point()
    require_positions(start.bert, reader_seq_length=config.layout.reader_seq_length)
    seed = training.seed
    tokenizer = start.vocabulary()
    examples = _dataset(config, config.data.train, tokenizer)
    shape = config.model.over(start.bert)
    model = ExtractiveReader(shape, topology, training.precision.dtype, seed=seed)
    load_start(start, model, training.save, topology)
    held_out, tasks = None, []
    if (held_out_data := config.data.held_out()) is not None:
        held_out = _dataset(config, held_out_data, tokenizer)
        questions: list[ReaderQuestion] = list(read_training_questions(held_out_data, QuestionCensus()))
        answerer = ExtractiveAnswerer(model, tokenizer, config.layout, config.answers, device=topology.device)
        tasks.append(GivenPassagesTask(questions, answerer, model, config.scoring))
    saved = SavedModel(
        KIND,
        extractive_reader_checkpoint_config(shape, config.layout, start.lower_case),
        tokenizer.assets(),
        {"number of training questions": len(examples)},
    )
    run = TrainingRun(training, topology, model, saved)
    run.evaluate(held_out, tasks)
    run.resume()
    return run.trainer(ExtractiveStep(model, config.step, topology, seed), examples)


def _dataset(
    config: ExtractiveFinetuneConfig, data: ReaderTrainingDataConfig, tokenizer: Vocabulary
) -> ExtractiveDataset:
    return ExtractiveDataset(
        data,
        config.draw,
        config.layout,
        tokenizer,
        max_answer_length=config.answers.max_answer_length,
        seed=config.training.seed,
    )
