"""Readers of question files: DPR's `.qa.csv`, BEIR's and MS MARCO's queries, KILT, TREC topics, training data."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import re
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.data.files.names import ANSWERS, KILT_ANSWERS, QUESTION_IDS, QUESTIONS, TITLES
from megatron_retrieval.data.files.passage_files import passage_of
from megatron_retrieval.data.files.records import TableRecord, Unnamed, not_empty, read_records
from megatron_retrieval.data.files.tables import TableForm
from megatron_retrieval.data.files.training_files import as_biencoder, is_training
from megatron_retrieval.errors import DataError
from megatron_retrieval.types.questions import Question

_LISTS = ("[", "(", "array(")
_ARRAY = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^)]+)?\)", re.DOTALL)
#: perhaps literals beside one another, which Python joins
_TWO_STRINGS = re.compile(r"""['"]\s+['"]""")
#: what a literal's escapes leave where a backslash was meant
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
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


def read_questions(path: str | Path, asked: AskedQuestionsConfig | None = None) -> Iterator[Question]:
    """Yield the questions of a file of records, of training data, or of a table without a header: DPR's .qa.csv
    (question, answers) or MS MARCO's queries (id, text).

    The id is the record's where it has one, otherwise its number in the file, from 1. Answers may be missing.

    Args:
        asked: which of them; default: all, as they are.

    Raises:
        DataError: anything malformed, with its line; or no questions at all.
    """
    asked, path = asked or AskedQuestionsConfig(), Path(path)
    questions = (question_of(record, number) for number, record in enumerate(read_records(path, question_columns), 1))
    for question in not_empty(path, asked.chosen(questions), "questions"):
        yield dataclasses.replace(question, text=asked.prepared(question.text))


def require_distinct_ids(path: Path, questions: Iterable[Question]) -> None:
    """Refuse an id that two questions have: results would hold the passages of both under it.

    Raises:
        DataError: naming the id.
    """
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            hint = "Give each question an id of its own, or none."
            raise DataError(path, f"two questions have the id {question.id!r}", hint=hint)
        seen.add(question.id)


def question_columns(form: TableForm) -> Unnamed | None:
    """The columns of questions in a table without a header, by its first row."""
    if len(form.first_row) == 2 and form.first_row[1].startswith(_LISTS):
        return Unnamed(("question", "answers"), quoted=True)
    return Unnamed(("id", "text")) if len(form.plain_row) == 2 else None


def question_of(record: Record, number: int) -> Question:
    """A question; with gold passages where the record is training data.

    Args:
        number: of the record in its file.
    """
    record = as_biencoder(record) if is_training(record) else record
    key, _ = record.first(*QUESTIONS)
    if key == "text" and record.first(*TITLES)[1]:
        raise record.error("a passage (it has a title), not a question", "Is it the corpus?")
    gold = [passage_of(context).id for context in record.records("positive_ctxs", required=False)]
    return Question(
        record.identifier(*QUESTION_IDS) or str(number),
        record.text(*QUESTIONS),
        answers_of(record),
        tuple(dict.fromkeys(identifier for identifier in gold if identifier)),
    )


def answers_of(record: Record) -> tuple[str, ...]:
    """The answers of a record; none where it has none."""
    if KILT_ANSWERS in record.values:
        outputs = record.records(KILT_ANSWERS)
        answers = (output.text("answer", default="") for output in outputs)
        return tuple(dict.fromkeys(answer for answer in answers if answer))
    if not isinstance(record, TableRecord):
        return record.strings(*ANSWERS, required=False)
    text = record.text(*ANSWERS, default="")
    if not record.values.keys() & {*ANSWERS} or (record.has_header and not text.startswith(_LISTS)):
        return (text,) if text else ()
    return _answer_list(record, text)


def _literal(text: str) -> Any:
    """A value in JSON, which joins the halves of a surrogate pair, or a literal of Python; None where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of \s and \d, which stay as they are
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _answer_list(record: TableRecord, text: str) -> tuple[str, ...]:
    """The answers written as a list of JSON or of Python."""
    array = _ARRAY.fullmatch(text)
    answers = _literal(array[1] if array else text)
    shown = text if len(text) <= 40 else text[:40] + "…"
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, str) for answer in answers):
        raise record.error(f"{shown!r} is no list of answers", hint="Expected ['one', 'another'].")
    if _TWO_STRINGS.search(text) and _num_literals(text) > len(answers):
        hint = "Separate them by commas: ['one', 'another']."
        raise record.error(f"{shown!r} has answers without a comma between them, as NumPy prints arrays", hint)
    if any(_CONTROL.search(answer) for answer in answers):
        problem = f"{shown!r} holds control characters: a backslash, as in \\b, begins an escape (there, a backspace)"
        raise record.error(problem, hint="Double the backslashes of regular expressions: ['\\\\bword\\\\b'].")
    return tuple(answers)


def _num_literals(text: str) -> int:
    return sum(token.type == tokenize.STRING for token in tokenize.generate_tokens(io.StringIO(text).readline))
