"""A fusion reader fine-tuned on questions with the passages that a retriever found for them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from megatron_retrieval.checkpoint.kinds.architectures import Shape
from megatron_retrieval.checkpoint.kinds.fusion_reader import (
    KIND,
    READABLE_KINDS,
    STARTING_KINDS,
    FusionReaderDescription,
    describe_fusion_reader,
    start_fusion_reader,
)
from megatron_retrieval.data.examples.fusion import FusionDataset
from megatron_retrieval.data.files.passage_questions import (
    QuestionCensus,
    ReaderTrainingDataConfig,
    read_training_questions,
)
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig, FusionLayout
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.exact_match import AnswerScoreConfig
from megatron_retrieval.evaluation.generated_answers import FusionAnswerer
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig, FusionReader
from megatron_retrieval.models.generation import GenerationConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.recipes.lengths import require_reading_positions, within_positions
from megatron_retrieval.recipes.reader_training import ReaderDataConfig, ReaderModelConfig
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingConfig, TrainingRun
from megatron_retrieval.training.steps.fusion_step import FusionStep, FusionStepConfig
from megatron_retrieval.training.tasks.answers import GivenPassagesTask
from megatron_retrieval.training.trainer import Trainer


@dataclass(kw_only=True, frozen=True)
class FusionModelConfig(ReaderModelConfig):
    """What training may change of the model that it starts from."""

    decoder_num_layers: int | None = None
    """Transformer layers of the decoder where training starts from a BERT, which has none; default: as many as the
    encoder has."""

    def over_start(self, start: FusionReaderDescription) -> Shape:
        """The shape of a reader that starts there.

        Raises:
            ConfigError: the start has a decoder, of another number of layers.
        """
        shape = self.over(start.config)
        if start.kind in READABLE_KINDS and shape.num_decoder_layers != start.config.num_decoder_layers:
            raise ConfigError(
                f"--decoder-num-layers {self.decoder_num_layers}: the decoder of {start.folder} has "
                f"{start.config.num_decoder_layers} layers; leave the flag out."
            )
        return shape


@dataclass(kw_only=True, frozen=True)
class FusionFinetuneConfig:
    """Fine-tune an encoder-decoder to write answers from all passages of a question (fusion in the decoder)."""

    pretrained_checkpoint: str | None = None
    """Checkpoint whose weights, shape, vocabulary and, if it is a fusion reader, layout training starts from: of a T5,
    of a fusion reader, or of a BERT (a dual encoder's passage tower, a masked LM, an extractive reader), which becomes
    encoder and decoder."""
    data: ReaderDataConfig
    training: TrainingConfig
    model: FusionModelConfig = field(default_factory=FusionModelConfig)
    layout: FusionFormatConfig = field(default_factory=FusionFormatConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    step: FusionStepConfig = field(default_factory=FusionStepConfig)
    scoring: AnswerScoreConfig = field(default_factory=AnswerScoreConfig)
    encode: FusionEncodeConfig = field(default_factory=FusionEncodeConfig)

    @property
    def parallel(self) -> ParallelConfig:
        """For the launcher."""
        return self.training.parallel

    def starting_point(self) -> FusionReaderDescription:
        """The checkpoint that gives shape and vocabulary: the resumed one, else the pretrained one.

        Raises:
            ConfigError: neither is given.
        """
        if folder := self.training.save.resume_folder():
            return describe_fusion_reader(folder)
        if self.pretrained_checkpoint is None:
            raise ConfigError("nothing to start from: give --pretrained-checkpoint, a T5, a BERT or a fusion reader.")
        return describe_fusion_reader(self.pretrained_checkpoint, STARTING_KINDS)

    def with_artefact_defaults(self) -> FusionFinetuneConfig:
        """A reader's layout is the default of its flags; sequences are no longer than a BERT's positions."""
        start = self.starting_point()
        return dataclasses.replace(self, layout=within_positions(start.layout or self.layout, start.config))


def build(config: FusionFinetuneConfig, topology: ProcessTopology) -> Trainer:
    """Read the data, build the model, and make the trainer.

    Raises:
        ConfigError: no checkpoint to start from, no room for passages, or sequences longer than its positions.
        DataError, CheckpointError: an input cannot be used.
    """
    training, start = config.training, config.starting_point()
    seed = training.seed
    shape = config.model.over_start(start)
    require_reading_positions(shape, config.layout, config.generation)
    tokenizer = start.vocabulary()
    layout = FusionLayout(config.layout, tokenizer)
    examples = _dataset(config, config.data.train, layout, tokenizer)
    model = start.architecture.build(shape, tokenizer, topology, training.precision.dtype, seed=seed)
    if training.save.resume_folder() is None:
        start_fusion_reader(start, model, topology)
    reader = FusionReader(model, config.encode)
    held_out, tasks = None, []
    if (held_out_data := config.data.held_out()) is not None:
        held_out = _dataset(config, held_out_data, layout, tokenizer)
        questions = list(read_training_questions(held_out_data, QuestionCensus()))
        answerer = FusionAnswerer(reader, tokenizer, layout, config.generation, topology)
        tasks.append(GivenPassagesTask(questions, answerer, model, config.scoring))
    saved = SavedModel(
        KIND,
        start.reader_config(shape, config.layout),
        start.assets(),
        {"number of training questions": len(examples)},
    )
    run = TrainingRun(training, topology, model, saved)
    run.evaluate(held_out, tasks)
    run.resume()
    return run.trainer(FusionStep(reader, config.step, topology, seed), examples)


def _dataset(
    config: FusionFinetuneConfig,
    data: ReaderTrainingDataConfig,
    layout: FusionLayout,
    tokenizer: Vocabulary,
) -> FusionDataset:
    longest = config.generation.max_answer_length
    return FusionDataset(data, layout, tokenizer, max_answer_length=longest, seed=config.training.seed)
