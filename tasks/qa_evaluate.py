"""Evaluate a reader on questions with retrieved passages: how often is its answer right?"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_retrieval.config import to_flat_dict, write_config
from megatron_retrieval.data.reader_questions import (
    PassagesToReadConfig,
    QuestionCensus,
    ReaderQuestion,
    read_reader_questions,
)
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.exact_match import AnswerScore, AnswerScoreConfig, answer_metrics
from megatron_retrieval.evaluation.reader_task import evaluate_reader
from megatron_retrieval.evaluation.reading_results import PREDICTIONS, Prediction, ReadQuestion, write_predictions
from megatron_retrieval.evaluation.results import METRICS
from megatron_retrieval.parallel import ParallelConfig, ProcessTopology, run_distributed
from megatron_retrieval.recipes.reading import ReaderConfig, open_reader
from megatron_retrieval.reports.reading_page import PAGE, write_reading_page
from megatron_retrieval.reports.run_record import RunRecord
from megatron_retrieval.reports.tables import percent, text_table
from megatron_retrieval.utils.files import write_json

Results = Sequence[tuple[Prediction, AnswerScore]]


@dataclass(kw_only=True, frozen=True)
class QaEvaluateConfig:
    """Evaluate a reader by exact match and F1."""

    reader: ReaderConfig
    """What answers."""
    questions: Path
    """Questions with passages: results.json of retriever-evaluate, DPR's or FiD's JSON, plain or gzip."""
    max_questions: int | None = None
    """Ask only the first so many (after the stride); default: all."""
    question_stride: int = 1
    """Ask only every so-manyth question, from the first on."""
    reading: PassagesToReadConfig = field(default_factory=PassagesToReadConfig)
    """What is read for a question."""
    scoring: AnswerScoreConfig = field(default_factory=AnswerScoreConfig)
    """When an answer is right."""
    output_dir: Path
    """Folder for metrics.json, predictions.jsonl, examples.html, config.yaml and run_record.json."""
    num_examples: int = 50
    """Questions that examples.html shows, at equal distances; 0: no such page."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""

    def __post_init__(self) -> None:
        if self.question_stride < 1 or (self.max_questions is not None and self.max_questions < 1):
            raise ConfigError("--question-stride and --max-questions must be at least 1.")
        if self.num_examples < 0:
            raise ConfigError(f"--num-examples must not be negative: {self.num_examples}.")

    def read(self, census: QuestionCensus | None = None) -> Iterator[ReaderQuestion]:
        """The chosen questions, one at a time: they are read once more for the reports rather than kept."""
        chosen = islice(read_reader_questions(self.questions, self.reading, census), 0, None, self.question_stride)
        return islice(chosen, self.max_questions)


def main(config: QaEvaluateConfig, topology: ProcessTopology) -> None:
    record = RunRecord(config, topology.world_size)
    opened = open_reader(config.reader, config.reading, topology)
    census = QuestionCensus()
    results = evaluate_reader(config.read(census), opened.reader, config.scoring, topology)
    if topology.is_main:
        census.log(config.questions)
        switches = to_flat_dict(config.reading) | to_flat_dict(config.scoring)
        metrics = {
            **answer_metrics([score for _, score in results]),
            "num_unanswered_questions": sum(not prediction.text for prediction, _ in results),
            **census.faults(),
            **{name.replace("-", "_"): value for name, value in switches.items()},
            **opened.protocol,
        }
        _write(config, results, metrics)
        record.write(config.output_dir)
        sys.stdout.write(_table(metrics) + "\n")


def _write(config: QaEvaluateConfig, results: Results, metrics: dict[str, Any]) -> None:
    folder = config.output_dir
    write_json(folder / METRICS, metrics)
    write_predictions(folder / PREDICTIONS, _read_questions(config, results))
    write_config(config, folder / "config.yaml")
    if config.num_examples:
        step = max(1, len(results) // config.num_examples)
        examples = islice(islice(_read_questions(config, results), 0, None, step), config.num_examples)
        facts = {
            "exact match": _with_interval(metrics, "exact_match"),
            "F1": _with_interval(metrics, "f1"),
            "questions": f"{metrics['num_questions']:,}",
            "passages read": 0 if metrics["closed_book"] else metrics["num_passages"],
            "reader": config.reader.load,
        }
        write_reading_page(folder / PAGE, examples, title=f"What was read for {config.questions.name}", facts=facts)


def _read_questions(config: QaEvaluateConfig, results: Results) -> Iterator[ReadQuestion]:
    for question, (prediction, score) in zip(config.read(), results, strict=True):
        yield ReadQuestion(question, prediction, score)


def _with_interval(metrics: dict[str, Any], name: str) -> str:
    low, high = metrics[f"{name}_ci95"]
    return f"{percent(metrics[name])} ({percent(low)} - {percent(high)})"


def _table(metrics: dict[str, Any]) -> str:
    """Exact match and F1 in percent with their 95 % intervals."""
    rows = []
    for title, name in (("exact match", "exact_match"), ("F1", "f1")):
        low, high = metrics[f"{name}_ci95"]
        rows.append([title, percent(metrics[name]), f"{percent(low)} - {percent(high)}"])
    return f"{metrics['num_questions']:,} questions\n\n{text_table(['', '%', '95 % interval'], rows)}"


if __name__ == "__main__":
    run_distributed(QaEvaluateConfig, main)
