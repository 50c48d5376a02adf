"""Readers of question files: DPR's `.qa.csv`, JSON lines, and DPR biencoder JSON, plain or gzip."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.files.json_records import Record, read_json_list
from megatron_retrieval.data.files.sniff import read_json_records
from megatron_retrieval.data.files.tsv import read_table
from megatron_retrieval.errors import DataError
from megatron_retrieval.types.questions import Passage, Question

Item = TypeVar("Item")


@dataclass(kw_only=True, frozen=True)
class AskedQuestionsConfig(Checked):
    """Which questions of a file are asked, and how their text is prepared; recorded in the result."""

    max_questions: PositiveInt | None = None
    """Maximum number of questions, counted after the stride; default: all."""
    question_stride: PositiveInt = 1
    """Keep every n-th question, beginning with the first."""
    strip_question_mark: bool = False
    """Drop one question mark at the end, as Megatron-LM does."""
    plain_apostrophes: bool = False
    """Replace ’ by ', as DPR does."""

    def chosen(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the questions that are asked."""
        return islice(islice(items, 0, None, self.question_stride), self.max_questions)

    def prepared(self, text: str) -> str:
        """The text of a question as it is asked."""
        if self.strip_question_mark:
            text = text.removesuffix("?")
        return text.replace("’", "'") if self.plain_apostrophes else text


@dataclass(frozen=True)
class BiencoderExample:
    """One record of a DPR biencoder file."""

    question: str
    answers: tuple[str, ...]
    positives: tuple[Passage, ...]
    hard_negatives: tuple[Passage, ...]


def read_questions(path: str | Path, asked: AskedQuestionsConfig | None = None) -> Iterator[Question]:
    """Yield the questions of a file of the kind that `sniff` finds: a JSON list, JSON lines, or a DPR .qa.csv.

    The id is the record's `id` where it has one, otherwise its number in the file, from 1.

    Args:
        asked: which of them; default: all, as they are.

    Raises:
        DataError: anything malformed, with its line; or no questions at all.
    """
    path = Path(path)
    records = read_json_records(path)
    asked, is_empty = asked or AskedQuestionsConfig(), True
    for question in asked.chosen(_read_csv(path) if records is None else _from_records(records)):
        is_empty = False
        yield dataclasses.replace(question, text=asked.prepared(question.text))
    if is_empty:
        raise DataError(path, "there are no questions in the file")


def read_biencoder(path: str | Path) -> Iterator[BiencoderExample]:
    """Yield the examples of a DPR biencoder JSON file, one at a time: these files can be larger than the memory.

    Raises:
        DataError: anything malformed, with its line.
    """
    for record in read_json_list(path):
        yield BiencoderExample(
            record.text("question"),
            record.strings("answers", "answer"),
            tuple(read_passage(context) for context in record.records("positive_ctxs")),
            tuple(read_passage(context) for context in record.records("hard_negative_ctxs", required=False)),
        )


def _from_records(records: Iterator[Record]) -> Iterator[Question]:
    """Yield the questions of records with `question`, `answer` or `answers` and, where known, `positive_ctxs`."""
    for number, record in enumerate(records, 1):
        gold = [read_passage(context).id for context in record.records("positive_ctxs", required=False)]
        yield Question(
            record.identifier("id") or str(number),
            record.text("question"),
            record.strings("answers", "answer"),
            tuple(dict.fromkeys(identifier for identifier in gold if identifier)),
        )


def read_passage(context: Record) -> Passage:
    """A passage as DPR's and FiD's files hold it."""
    return Passage(
        context.identifier("passage_id", "psg_id", "id"), context.text("title", default=""), context.text("text")
    )


def _read_csv(path: Path) -> Iterator[Question]:
    for number, (line, row) in enumerate(read_table(path), 1):
        if len(row) != 2:
            hint = "Expected a question, a tab and a list of answers."
            raise DataError(path, f"expected 2 fields, found {len(row)}", line=line, hint=hint)
        yield Question(str(number), row[0], _answer_list(path, line, row[1]))


def _answer_list(path: Path, line: int, text: str) -> tuple[str, ...]:
    """The answers written as a Python list; `literal_eval` evaluates nothing but literals."""
    try:
        answers = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        answers = None
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, str) for answer in answers):
        shown = text if len(text) <= 40 else text[:40] + "…"
        raise DataError(path, f"{shown!r} is no list of answers", line=line, hint="Expected ['one', 'another'].")
    return tuple(answers)
