"""TREC's relevance judgements (qrels, also in BEIR's and MS MARCO's form) and runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.data.files.names import PASSAGE_IDS
from megatron_retrieval.data.files.records import read_records
from megatron_retrieval.data.files.sniff import FileKind, form_of_table, sniff
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_lines

#: question id -> passage id -> grade
Qrels = dict[str, dict[str, int]]

_QUESTIONS, _GRADES = ("query-id", "query_id", "qid"), ("score", "relevance", "rel", "label")
_PASSAGES = ("corpus-id", *PASSAGE_IDS)


def read_qrels(path: str | Path) -> Qrels:
    """The judgements of a file: TREC's four columns, or BEIR's three, in a table, JSON lines or Parquet.

    Raises:
        DataError: malformed, with its line; or a passage is judged twice, with different grades.
    """
    qrels: Qrels = {}
    for record in _judgements(path):
        question, passage = record.identifier(*_QUESTIONS), record.identifier(*_PASSAGES)
        grade = _grade(record)
        if qrels.setdefault(question, {}).setdefault(passage, grade) != grade:
            problem = f"{passage!r} is judged twice for {question!r}, with different grades"
            raise record.error(problem, hint="Keep one of the two lines.")
    if not qrels:
        raise DataError(path, "there are no judgements in the file")
    return qrels


def _judgements(path: str | Path) -> Iterator[Record]:
    if sniff(path) not in (FileKind.TEXT, FileKind.TABLE) or form_of_table(path).header:
        yield from read_records(path, lambda row: None)
        return
    for number, line in enumerate(read_lines(path), 1):
        fields = line.split()
        if fields and len(fields) not in (3, 4):
            hint = "Expected TREC's question id, 0, passage id, grade; or BEIR's query-id, corpus-id, score."
            raise DataError(path, f"no judgement ({len(fields)} fields)", line=number, hint=hint)
        if fields:
            values = {_QUESTIONS[0]: fields[0], _PASSAGES[0]: fields[-2], _GRADES[0]: fields[-1]}
            yield Record(Path(path), number, values)


def _grade(record: Record) -> int:
    text = record.text(*_GRADES)
    try:
        return int(text)
    except ValueError as error:
        raise record.error(f"{text!r} is no grade", hint="Grades are whole numbers.") from error


def read_run(path: str | Path) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Yield (question id, its passage ids with scores, best first) of a TREC run.

    Raises:
        DataError: malformed, with its line; or the lines of a question do not stand together.
    """
    seen: set[str] = set()
    for question, lines in groupby(_run_lines(path), itemgetter(1)):
        found = list(lines)
        if question in seen:
            problem = f"the question {question!r} begins a second time"
            raise DataError(path, problem, line=found[0][0], hint="Sort the run by question.")
        seen.add(question)
        found.sort(key=itemgetter(3), reverse=True)
        yield question, [(passage, score) for _, _, passage, score in found]


def _run_lines(path: str | Path) -> Iterator[tuple[int, str, str, float]]:
    for number, line in enumerate(read_lines(path), 1):
        fields = line.split()
        try:
            question, _, passage, _, score, _ = fields
            yield number, question, passage, float(score)
        except ValueError as error:
            problem = "no line of a run (question id, Q0, passage id, rank, score, tag)"
            raise DataError(path, problem, line=number) from error
