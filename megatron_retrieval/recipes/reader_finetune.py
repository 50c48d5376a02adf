"""A reader fine-tuned on questions with the passages that a retriever found for them, whatever its kind."""

from __future__ import annotations

from typing import Any

from megatron_retrieval.data.files.passage_questions import QuestionCensus, read_training_questions
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.finetune import ReaderFinetuneConfig
from megatron_retrieval.training.adapting import adapted_run
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.tasks.answers import GivenPassagesTask
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.training.training_run import run_training


def main(config: ReaderFinetuneConfig[Any], topology: ProcessTopology) -> None:
    """Train; leaves configuration, metrics and run record in `--output-dir`."""
    run_training(build, config, topology)


def build(config: ReaderFinetuneConfig[Any], topology: ProcessTopology) -> Trainer:
    """Read the data, build the model, and make the trainer.

    Raises:
        ConfigError: no checkpoint to start from, no room for passages, or sequences longer than its positions.
        DataError, CheckpointError: an input cannot be used.
    """
    training, start, kind = config.training, config.starting_point, config.kind
    reader = kind.open(
        start, config.settings(start), topology, training.precision.on(topology.device), seed=training.seed
    )
    examples = config.examples(reader, config.data.train)
    if training.save.resume_folder is None:
        reader.load(start)
    held_out, tasks = None, []
    if (held_out_data := config.data.held_out()) is not None:
        held_out = config.examples(reader, held_out_data)
        questions = list(read_training_questions(held_out_data, QuestionCensus()))
        tasks.append(GivenPassagesTask(questions, reader.answerer(), reader.model, config.scoring))
    identity = {"number of training questions": len(examples)}
    saved = SavedModel(kind.checkpoints.name, reader.checkpoint_config(), reader.vocabulary.assets(), identity)
    run = adapted_run(config, reader.model, start, saved, topology, held_out=held_out, tasks=tasks)
    return run.trainer(config.step_module(reader), examples)
