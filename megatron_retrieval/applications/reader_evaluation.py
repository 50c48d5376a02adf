"""Evaluate a reader on questions with passages, given or retrieved: how often is its answer right?"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.open_reader import ReaderConfig, open_reader
from megatron_retrieval.applications.questions_to_read import QuestionsToRead, QuestionsToReadConfig, open_questions
from megatron_retrieval.config.checks import Checked, NonNegativeInt
from megatron_retrieval.config.parser import write_config
from megatron_retrieval.data.files.passage_questions import QuestionCensus, ReaderQuestion
from megatron_retrieval.evaluation.exact_match import AnswerScore, AnswerScoreConfig, answer_metrics
from megatron_retrieval.evaluation.predictions import (
    PREDICTIONS,
    Prediction,
    ReadQuestion,
    mean_figures,
    write_predictions,
)
from megatron_retrieval.evaluation.reader_task import Reader, evaluate_reader
from megatron_retrieval.evaluation.retrieval_results import METRICS, recorded
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.reports.reading_page import PAGE, write_reading_page
from megatron_retrieval.reports.tables import rate_cells, text_table
from megatron_retrieval.training.run_record import RunRecord
from megatron_retrieval.utils.files import write_json

Results = Sequence[tuple[Prediction, AnswerScore]]


@dataclass(kw_only=True, frozen=True)
class QaEvaluateConfig(Checked):
    """Evaluate a reader by exact match and F1."""

    reader: ReaderConfig
    """What answers."""
    given: QuestionsToReadConfig
    """What is asked, and read."""
    scoring: AnswerScoreConfig = field(default_factory=AnswerScoreConfig)
    """When an answer is right."""
    output_dir: Path
    """Folder for metrics.json, predictions.jsonl, examples.html, config.yaml and run_record.json."""
    num_examples: NonNegativeInt = 50
    """Questions that examples.html shows, at equal distances; 0: no such page."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""


def main(config: QaEvaluateConfig, topology: ProcessTopology) -> None:
    record = RunRecord(config, topology.world_size)
    search = config.given.search.what()
    scores_of = "other" if search is None else search.scores_of
    opened = open_reader(config.reader, config.given.reading, topology, scores_of=scores_of)
    questions, census = open_questions(config.given, config.reader.encode, topology), QuestionCensus()
    stream = _counting_long(questions.read(census), opened.reader, census)
    results = evaluate_reader(stream, opened.reader, config.scoring, topology)
    if topology.is_main:
        census.log(config.given.questions)
        metrics = {
            **answer_metrics([score for _, score in results]),
            **mean_figures([prediction for prediction, _ in results]),
            "num_unanswered_questions": sum(not prediction.text for prediction, _ in results),
            **census.faults(),
            "questions": str(config.given.questions),
            **recorded(config.given.asked, config.given.reading, config.scoring),
            **opened.protocol,
            **questions.retrieval_metrics,
        }
        _write(config, questions, results, metrics)
        record.write(config.output_dir)
        sys.stdout.write(_table(metrics) + "\n")


def _counting_long(
    questions: Iterable[ReaderQuestion], reader: Reader, census: QuestionCensus
) -> Iterator[ReaderQuestion]:
    """The questions as they are; acceptable answers that the reader could not give are counted."""
    for question in questions:
        census.num_long_answers += reader.num_long(question.answers)
        yield question


def _write(config: QaEvaluateConfig, questions: QuestionsToRead, results: Results, metrics: dict[str, Any]) -> None:
    folder = config.output_dir
    write_json(folder / METRICS, metrics)
    write_predictions(folder / PREDICTIONS, _read_questions(questions, results))
    write_config(config, folder / "config.yaml")
    if config.num_examples:
        step = max(1, len(results) // config.num_examples)
        examples = islice(islice(_read_questions(questions, results), 0, None, step), config.num_examples)
        facts = {
            **{title: "{} % ({})".format(*rate_cells(metrics, name)) for title, name in _rates(metrics).items()},
            "questions": f"{metrics['num_questions']:,}, of which {min(len(results), config.num_examples):,} are shown",
            "passages read": "none" if metrics["closed_book"] else f"up to {metrics['num_passages']} for each",
            "reader": config.reader.reader,
        }
        write_reading_page(
            folder / PAGE, examples, title=f"What was read for {config.given.questions.name}", facts=facts
        )


def _read_questions(questions: QuestionsToRead, results: Results) -> Iterator[ReadQuestion]:
    """The questions are gone through once more for every report rather than kept."""
    for question, (prediction, score) in zip(questions.read(QuestionCensus()), results, strict=True):
        yield ReadQuestion(question, prediction, score)


def _rates(metrics: dict[str, Any]) -> dict[str, str]:
    """What is shown, and its name among the metrics."""
    recall = f"recall@{metrics['num_passages']}"
    return {"exact match": "exact_match", "F1": "f1"} | ({f"answer {recall}": recall} if recall in metrics else {})


def _table(metrics: dict[str, Any]) -> str:
    """Exact match, F1 and recall in percent with their 95 % intervals."""
    rows = [[title, *rate_cells(metrics, name)] for title, name in _rates(metrics).items()]
    return f"{metrics['num_questions']:,} questions\n\n{text_table(['', '%', '95 % interval'], rows)}"
