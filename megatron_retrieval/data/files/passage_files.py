"""Readers of passage files: DPR's `psgs_w100.tsv` and JSON lines, plain or gzip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_retrieval.data.files.json_records import read_json_lines
from megatron_retrieval.data.files.tsv import columns_of, read_table
from megatron_retrieval.errors import DataError
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import read_lines


def read_passages(path: str | Path) -> Iterator[tuple[int, Passage]]:
    """Yield (line, passage) of a passage file; the kind is told by its first line.

    Tab-separated: a header with the columns `id`, `text` and `title`. JSONL: `title`, `text` and, optionally, `id`;
    without one, the passage is called by its file and line.

    Raises:
        DataError: anything malformed, with its line; or no passages at all.
    """
    path = Path(path)
    first = next(read_lines(path))
    passages = _read_jsonl(path) if first.lstrip().startswith("{") else _read_tsv(path)
    is_empty = True
    for numbered in passages:
        is_empty = False
        yield numbered
    if is_empty:
        raise DataError(path, "there are no passages in the file")


def stem(path: str | Path) -> str:
    """The file's name without `.gz` and without its kind."""
    return Path(Path(path).name.removesuffix(".gz")).stem


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
    for line, record in read_json_lines(path):
        identifier = record.identifier("id") or f"{stem(path)}:{line}"
        yield line, Passage(identifier, record.text("title"), record.text("text"))
