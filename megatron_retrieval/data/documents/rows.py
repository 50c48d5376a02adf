"""Tables and JSON: every row or object is a section of its own."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_retrieval.data.documents.reader import DocumentReader, Line, Section
from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.data.files.names import PASSAGE_IDS, TEXTS, TITLES
from megatron_retrieval.data.files.records import not_empty, read_records
from megatron_retrieval.data.files.sniff import form_of_table
from megatron_retrieval.data.files.tables import read_table
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_lines

_DELIMITERS = ",;\t|"


def read_csv(path: Path) -> Iterator[Section]:
    """A row with a text (and a title) is that text; of other rows, the values with the names of their columns."""
    rows = read_table(path, _delimiter(path))
    _, header = next(rows, (1, []))
    names = [name.strip().removeprefix("\ufeff") for name in header]
    for number, (line, row) in enumerate(rows, 1):
        values = dict(zip(names, row, strict=False))  # rows of people are longer and shorter than the header
        yield _section(Record(path, line, values), f"row={number}")


def read_json(path: Path) -> Iterator[Section]:
    """JSON lines, or a list of objects; each as a row of a table."""
    for record in not_empty(path, read_records(path, lambda form: None), "objects"):
        yield _section(record, f"line={record.line}")


def _section(record: Record, at: str) -> Section:
    title = record.text(*TITLES, default="")
    key, value = record.first(*TEXTS)
    if not key or not str(value).strip():
        value = _named_values(record.values)
    texts = value if isinstance(value, list) else [value]  # KILT's is a list of paragraphs
    lines = (Line(line, at) for text in texts for line in str(text).splitlines())
    return Section(title, list(lines))


def _named_values(values: Mapping[str, Any]) -> str:
    """A line for each value, "name: value"; ids, titles and nested objects aside."""
    found = []
    for name, value in values.items():
        items = [str(item) for item in (value if isinstance(value, list) else [value]) if _is_plain(item)]
        if items and name not in (*PASSAGE_IDS, *TITLES):
            found.append(f"{name}: {', '.join(items)}")
    return "\n".join(found)


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and value == value and str(value).strip() != ""


def _delimiter(path: Path) -> str:
    """What divides the fields: told by known names of columns, or else by what the first lines have in common."""
    form = form_of_table(path)
    if form.header:
        return form.delimiter
    start = "".join(line for _, line in zip(range(20), read_lines(path), strict=False))
    try:
        return csv.Sniffer().sniff(start, _DELIMITERS).delimiter
    except csv.Error as error:
        if "\n" in start.strip() and not any(delimiter in start for delimiter in _DELIMITERS):
            return ","  # a single column
        raise DataError(path, "cannot tell what divides its columns", line=1) from error


TABLE = DocumentReader(
    "table", "CSV and TSV with a header; each row is a document", (".csv", ".tsv"), read_csv, holds_whole=False
)
JSON = DocumentReader(
    "json", "JSON lines or a list of objects; each object is a document", (".jsonl", ".json"), read_json,
    holds_whole=False,
)  # fmt: skip
