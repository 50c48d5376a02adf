"""Datasets of questions and answers without passages: PopQA and Natural Questions, open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_retrieval.data.convert.common import DatasetConverterConfig, write_qa_csv
from megatron_retrieval.data.files.json_records import Record, read_json_lines
from megatron_retrieval.data.files.passage_files import stem
from megatron_retrieval.data.files.tsv import columns_of, read_table
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import atomic_file
from megatron_retrieval.utils.logging import get_logger

QUESTION, ANSWERS = "question", "possible_answers"
LISTS, COUNTS = frozenset({ANSWERS, "s_aliases", "o_aliases"}), frozenset({"s_pop", "o_pop"})


def convert_nq_open(config: DatasetConverterConfig, folder: Path) -> None:
    """Write the questions of each input.

    Raises:
        DataError: a line is no question with answers.
    """
    for path in config.input:
        records = (record for _, record in read_json_lines(path))
        rows = ((record.text("question"), record.strings("answer", "answers")) for record in records)
        _log(path, write_qa_csv(folder / f"{stem(path)}.qa.csv", rows, config.question_stride))


def convert_popqa(config: DatasetConverterConfig, folder: Path) -> None:
    """Write the questions of each input, as .qa.csv and, with what else is known of them, as JSON lines.

    Raises:
        DataError: an input is no PopQA table.
    """
    for path in config.input:
        records = ((record.text(QUESTION), record.strings(ANSWERS)) for record in _read_popqa(path))
        _log(path, write_qa_csv(folder / f"{stem(path)}.qa.csv", records, config.question_stride))
        with atomic_file(folder / f"{stem(path)}.jsonl") as file:
            for record in islice(_read_popqa(path), 0, None, config.question_stride):
                values = {"answers" if name == ANSWERS else name: value for name, value in record.values.items()}
                file.write(json.dumps(values, ensure_ascii=False) + "\n")


def _read_popqa(path: str) -> Iterator[Record]:
    """Yield every row by its columns' names."""
    rows = read_table(path)
    _, header = next(rows, (1, []))
    columns_of(path, header, (QUESTION, ANSWERS))
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(path, f"expected {len(header)} fields, found {len(row)}", line=line)
        record = Record(Path(path), line, dict(zip(header, row, strict=True)))
        yield replace(record, values={name: _value(record, name) for name in header})


def _value(record: Record, name: str) -> Any:
    """Lists and popularities are JSON, all else is text."""
    text = record.text(name)
    if name not in LISTS and not (name in COUNTS and text.isdecimal()):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise record.error(f"{name!r} is no JSON ({error.msg})") from error
    if name in LISTS and not isinstance(value, list):
        raise record.error(f"{name!r} must be a list of strings")
    return value


def _log(path: str, num_questions: int) -> None:
    if not num_questions:
        raise DataError(path, "there are no questions in the file")
    get_logger("data").info("%s: %s questions", stem(path), f"{num_questions:,}")
