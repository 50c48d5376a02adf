"""Questions with the passages to read: retrieval results in DPR's JSON, reader data in FiD's, plain or gzip."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

from megatron_retrieval.config.checks import Bounds, Checked, PositiveInt
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.data.files.names import ANSWERS, CONTEXTS
from megatron_retrieval.data.files.passage_files import passage_of
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig, question_columns, question_of
from megatron_retrieval.data.files.records import TableRecord, not_empty, read_records
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.types.questions import Passage, Question
from megatron_retrieval.utils.logging import get_logger

log = get_logger("data")


@dataclass(frozen=True)
class ReaderQuestion:
    """A question with its acceptable answers and the passages to read.

    Attributes:
        id: the record's, or else its number in the file, from 1.
        answers: none of them blank; there may be none.
        passages: best first; none in closed-book mode, or where nothing was retrieved.
        scores: of the passages.
        target: the answer to learn, where the file names one (FiD).
    """

    id: str
    text: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...] = ()
    scores: tuple[float, ...] = ()
    target: str | None = None


@dataclass(kw_only=True, frozen=True)
class PassagesToReadConfig(Checked):
    """What is read for a question; recorded in the result."""

    num_passages: Annotated[int, Bounds(least=1, why="--closed-book reads none")] = 20
    """Passages per question: the first of the file, or the best that are retrieved. Training draws from them."""
    closed_book: bool = False
    """Read no passages: the reader answers from its weights alone. The file may then also be a DPR .qa.csv."""

    @property
    def num_read(self) -> int:
        """Passages that a question may have."""
        return 0 if self.closed_book else self.num_passages

    def require_passages(self) -> None:
        """Refuse closed-book mode, for readers that point into passages.

        Raises:
            ConfigError: it is on.
        """
        if self.closed_book:
            raise ConfigError("--closed-book: this reader takes its answers from passages.")


@dataclass(kw_only=True, frozen=True)
class ReaderTrainingDataConfig(Checked):
    """What a reader learns from."""

    train_data: tuple[str, ...] = field(metadata=INPUT)
    """Questions with passages: results.json of retriever-evaluate, DPR's or FiD's JSON, plain or gzip."""
    max_train_questions: PositiveInt | None = None
    """Maximum number of questions, from the beginning of the files; default: all."""
    reading: PassagesToReadConfig = field(default_factory=PassagesToReadConfig)
    """What is read for a question."""


@dataclass
class QuestionCensus:
    """Counts questions and what they lack, so that nothing is dropped silently."""

    num_questions: int = 0
    num_questions_without_answers: int = 0
    num_questions_without_passages: int = 0
    #: answers that are empty or white space
    num_blank_answers: int = 0
    #: answers over a reader's length limit; counted by the reader that has one
    num_long_answers: int = 0
    #: answers that a reader's vocabulary cannot write, and that its own can therefore never equal
    num_answers_with_unknown_characters: int = 0

    def count(self, question: ReaderQuestion, num_blank: int, *, closed_book: bool) -> None:
        self.num_questions += 1
        self.num_questions_without_answers += not question.answers
        self.num_questions_without_passages += not question.passages and not closed_book
        self.num_blank_answers += num_blank

    def faults(self) -> dict[str, int]:
        """All counts except the number of questions, as metrics.json keeps them."""
        counts = dataclasses.asdict(self)
        del counts["num_questions"]
        return counts

    def log(self, path: str | Path) -> None:
        """Log how many questions were read, and what they lack."""
        log.info("%s: %s questions", path, f"{self.num_questions:,}")
        for name, number in self.faults().items():
            if number:
                log.info("%s: %s %s", path, f"{number:,}", name.removeprefix("num_").replace("_", " "))


def read_reader_questions(
    path: str | Path,
    config: PassagesToReadConfig,
    census: QuestionCensus | None = None,
    asked: AskedQuestionsConfig | None = None,
) -> Iterator[ReaderQuestion]:
    """Yield the questions of a file one at a time.

    A JSON list or JSON lines of {question, answers, ctxs [{title, text, score, id}]}, with `id` and `target` where
    they are there; in closed-book mode any file of questions.

    Args:
        census: counts what is read.
        asked: which questions; default: all, as they are.

    Raises:
        DataError: anything malformed, with its line; or no questions at all.
    """
    census, asked = census or QuestionCensus(), asked or AskedQuestionsConfig()
    questions = asked.chosen(_questions(Path(path), config))
    for question, num_blank in not_empty(path, questions, "questions"):
        census.count(question, num_blank, closed_book=config.closed_book)
        yield dataclasses.replace(question, text=asked.prepared(question.text))


def read_training_questions(data: ReaderTrainingDataConfig, census: QuestionCensus) -> Iterator[ReaderQuestion]:
    """Yield the questions of all files, one at a time.

    Raises:
        DataError: see `read_reader_questions`.
    """
    streams = (read_reader_questions(path, data.reading, census) for path in data.train_data)
    return islice(chain.from_iterable(streams), data.max_train_questions)


def _questions(path: Path, config: PassagesToReadConfig) -> Iterator[tuple[ReaderQuestion, int]]:
    for number, record in enumerate(read_records(path, question_columns), 1):
        if isinstance(record, TableRecord) and not config.closed_book:
            hint = (
                "Give results.json of retriever-evaluate, DPR's or FiD's JSON; other question files need --closed-book "
                "or, in qa-evaluate, --retriever."
            )
            raise DataError(path, "holds no passages to read", hint=hint)
        yield _question(record, number, config)


def question_to_read(
    question: Question, passages: Sequence[Passage] = (), scores: Sequence[float] = ()
) -> tuple[ReaderQuestion, int]:
    """A question with its passages, and the number of its blank answers."""
    answers = not_blank(question.answers)
    read = ReaderQuestion(question.id, question.text, answers, tuple(passages), tuple(scores))
    return read, len(question.answers) - len(answers)


def _question(record: Record, number: int, config: PassagesToReadConfig) -> tuple[ReaderQuestion, int]:
    """A question, and the number of its blank answers."""
    question = question_of(record, number)
    target = record.text("target", default="") or None
    only_target = target is not None and record.values.keys().isdisjoint(ANSWERS)
    given = (target,) if only_target and target else question.answers
    contexts: list[Record] = []
    if not config.closed_book:
        if record.values.keys().isdisjoint(CONTEXTS):
            raise record.error("there is no 'ctxs'", "Give a file with passages, or --closed-book.")
        contexts = record.records(*CONTEXTS)[: config.num_passages]
    answers = not_blank(given)
    passages, scores = tuple(map(passage_of, contexts)), tuple(map(_score, contexts))
    return ReaderQuestion(question.id, question.text, answers, passages, scores, target), len(given) - len(answers)


def _score(context: Record) -> float:
    """DPR writes scores as strings."""
    value = context.values.get("score", 0.0)
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if math.isnan(score):
        raise context.error("'score' must be a number")
    return score


def not_blank(answers: tuple[str, ...]) -> tuple[str, ...]:
    """The answers that are more than white space."""
    return tuple(answer for answer in answers if answer.strip())
