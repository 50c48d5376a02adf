"""PopQA: questions and answers without passages, with the popularity of their entities (arXiv 2212.10511)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_retrieval.data.convert.common import write_questions
from megatron_retrieval.data.convert.registry import CONVERTERS, Converter, DatasetConverterConfig
from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.data.files.sniff import stem
from megatron_retrieval.data.files.tables import columns_of, read_table
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import atomic_file

QUESTION, ANSWERS = "question", "possible_answers"
LISTS, COUNTS = frozenset({ANSWERS, "s_aliases", "o_aliases"}), frozenset({"s_pop", "o_pop"})


def convert_popqa(config: DatasetConverterConfig, folder: Path) -> None:
    """Write the questions of each input, as .qa.csv and, with what else is known of them, as JSON lines.

    Raises:
        DataError: an input is no PopQA table.
    """
    for path in config.input:
        records = ((record.text(QUESTION), record.strings(ANSWERS)) for record in _read_popqa(path))
        write_questions(folder, path, records, config.question_stride)
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


CONVERTERS.add(
    Converter("popqa", "popQA.tsv; written: questions, and NAME.jsonl with the other columns as well", convert_popqa)
)
