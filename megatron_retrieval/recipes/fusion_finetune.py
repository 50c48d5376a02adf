"""A fusion reader fine-tuned on questions with the passages that a retriever found for them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from megatron_retrieval.checkpoint.fusion_reader import (
    KIND,
    STARTING_KINDS,
    FusionReaderDescription,
    describe_fusion_reader,
    fusion_reader_checkpoint_config,
)
from megatron_retrieval.checkpoint.reader import load_weights
from megatron_retrieval.checkpoint.t5 import sentencepiece_asset
from megatron_retrieval.data.fusion import FusionDataset
from megatron_retrieval.data.fusion_layout import FusionFormatConfig, FusionLayout
from megatron_retrieval.data.reader_questions import QuestionCensus, ReaderTrainingDataConfig, read_training_questions
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.exact_match import AnswerScoreConfig
from megatron_retrieval.evaluation.generated_answers import FusionAnswerer
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.models.generation import GenerationConfig
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.parallel import ParallelConfig, ProcessTopology
from megatron_retrieval.recipes.reader_training import ReaderModelConfig, ReadingDataConfig
from megatron_retrieval.tokenizers import SentencePieceTokenizer
from megatron_retrieval.training.reading import ReadingTask
from megatron_retrieval.training.reading_step import ReadingStep, ReadingStepConfig
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingConfig, build_trainer
from megatron_retrieval.training.trainer import Trainer


@dataclass(kw_only=True, frozen=True)
class FusionFinetuneConfig:
    """Fine-tune a T5 to write answers from all passages of a question (fusion in the decoder)."""

    pretrained_checkpoint: str | None = None
    """Checkpoint whose weights, shape, vocabulary and, if it is a reader, layout training starts from: of a T5 or of a
    fusion reader."""
    data: ReadingDataConfig
    training: TrainingConfig
    model: ReaderModelConfig = field(default_factory=ReaderModelConfig)
    layout: FusionFormatConfig = field(default_factory=FusionFormatConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    step: ReadingStepConfig = field(default_factory=ReadingStepConfig)
    scoring: AnswerScoreConfig = field(default_factory=AnswerScoreConfig)
    encode_batch_size: int = 8
    """Texts that go through the encoder together, those of like length; memory and speed depend on it, the result does
    not."""

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
            raise ConfigError("nothing to start from: give --pretrained-checkpoint, a T5 or a fusion reader.")
        return describe_fusion_reader(self.pretrained_checkpoint, STARTING_KINDS)

    def with_artefact_defaults(self) -> FusionFinetuneConfig:
        """A reader's layout is the default of its flags."""
        return dataclasses.replace(self, layout=self.starting_point().layout or self.layout)


def build(config: FusionFinetuneConfig, topology: ProcessTopology) -> Trainer:
    """Read the data, build the model, and make the trainer.

    Raises:
        ConfigError: no checkpoint to start from, or no room for passages.
        DataError, CheckpointError: an input cannot be used.
    """
    training, start = config.training, config.starting_point()
    seed = training.seed
    tokenizer = SentencePieceTokenizer(start.sentencepiece_file)
    layout = FusionLayout(config.layout, tokenizer, end_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    examples = _dataset(config, config.data.train, layout, tokenizer)
    shape = config.model.over(start.config)
    model = T5(shape, topology, training.precision.dtype, seed=seed)
    if training.save.resume_folder() is None:
        load_weights(start.folder, start.manifest, model, topology)
    reader = FusionReader(model, encode_batch_size=config.encode_batch_size)
    held_out, tasks = None, []
    if (held_out_data := config.data.held_out()) is not None:
        held_out = _dataset(config, held_out_data, layout, tokenizer)
        questions = list(read_training_questions(held_out_data, QuestionCensus()))
        answerer = FusionAnswerer(reader, tokenizer, layout, config.generation, topology)
        tasks.append(ReadingTask(questions, answerer, model, config.scoring))
    return build_trainer(
        training,
        topology,
        model=model,
        step=ReadingStep(reader, config.step, topology, seed),
        examples=examples,
        held_out=held_out,
        saved=SavedModel(
            KIND,
            fusion_reader_checkpoint_config(shape, config.layout),
            sentencepiece_asset(tokenizer.model_file),
            {"number of training questions": len(examples)},
        ),
        tasks=tasks,
    )


def _dataset(
    config: FusionFinetuneConfig,
    data: ReaderTrainingDataConfig,
    layout: FusionLayout,
    tokenizer: SentencePieceTokenizer,
) -> FusionDataset:
    longest = config.generation.max_answer_length
    return FusionDataset(data, layout, tokenizer, max_answer_length=longest, seed=config.training.seed)
