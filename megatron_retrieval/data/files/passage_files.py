"""Readers of passage files: DPR's `psgs_w100.tsv` and JSON lines, plain or gzip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_retrieval.data.files.json_records import read_json_lines
from megatron_retrieval.data.files.sniff import sniff, stem
from megatron_retrieval.data.files.tsv import columns_of, read_table
from megatron_retrieval.errors import DataError
from megatron_retrieval.types.questions import Passage


def read_passages(path: str | Path) -> Iterator[tuple[int, Passage]]:
    """Yield (line, passage) of a passage file; of the kind that `sniff` finds.

    Tab-separated: a header with the columns `id`, `text` and `title`. JSONL: `title`, `text` and, optionally, `id`;
    without one, the passage is called by its file and line.

    Raises:
        DataError: anything malformed, with its line; or no passages at all.
    """
    path = Path(path)
    passages = _read_jsonl(path) if sniff(path).is_json_object else _read_tsv(path)
    is_empty = True
    for numbered in passages:
        is_empty = False
        yield numbered
    if is_empty:
        raise DataError(path, "there are no passages in the file")


def _read_tsv(path: Path) -> Iterator[tuple[int, Passage]]:
    rows = read_table(path)
    _, header = next(rows, (1, []))
    id_column, title_column, text_column = columns_of(path, header, ("id", "title", "text"))
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(path, f"expected {len(header)} fields, found {len(row)}", line=line)
        if not row[id_column]:
            raise DataError(path, "the id is empty", line=line)
        yield line, Passage(row[id_column], row[title_column], row[text_column])


def _read_jsonl(path: Path) -> Iterator[tuple[int, Passage]]:
    for record in read_json_lines(path):
        assert record.line is not None
        identifier = record.identifier("id") or f"{stem(path)}:{record.line}"
        yield record.line, Passage(identifier, record.text("title"), record.text("text"))
