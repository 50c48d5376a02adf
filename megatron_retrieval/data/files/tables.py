"""Tables: with a header, in CSV quotes and with any delimiter; without one as DPR and MS MARCO write them."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_retrieval.data.files.names import COLUMNS
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import MAX_LINE_BYTES, read_lines

TAB = "\t"
#: others separate only in files named as tables whose header then has known names: prose has commas
_OTHER_DELIMITERS = ",;|"
_TABLE_SUFFIXES = (".csv", ".tsv")
# a field may be as long as a line; the library's own limit is 128 KiB
csv.field_size_limit(min(MAX_LINE_BYTES, sys.maxsize))


@dataclass(frozen=True)
class TableForm:
    """How a table is written.

    Attributes:
        delimiter: between fields.
        first_row: the fields of its first row, without CSV quotes.
        plain_row: the fields of its first line where quotes are characters like others.
        header: the names of the columns; empty where the first line is none.
    """

    delimiter: str
    first_row: tuple[str, ...]
    plain_row: tuple[str, ...]
    header: tuple[str, ...]


def table_form(text: str, suffix: str) -> TableForm:
    """The form of a table that begins with `text`: tabs, or else what divides a first line into known names.

    Args:
        suffix: of the file's name.
    """
    line = text.partition("\n")[0].rstrip("\r")
    for delimiter in TAB + (_OTHER_DELIMITERS if suffix in _TABLE_SUFFIXES and TAB not in line else ""):
        row = _first_row(text, delimiter)
        if len(row) > 1 and not COLUMNS.isdisjoint(row):
            return TableForm(delimiter, row, row, row)
    return TableForm(TAB, _first_row(text, TAB), tuple(line.split(TAB)), ())


def _first_row(text: str, delimiter: str) -> tuple[str, ...]:
    try:
        return tuple(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), ()))
    except csv.Error:
        return ("",)


def read_table(path: str | Path, delimiter: str = TAB) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where the row begins, fields) of a table with CSV quotes; blank lines are skipped.

    Raises:
        DataError: broken quotes, a field without end, or the file cannot be read.
    """
    # strict: a stray quote would otherwise swallow rows silently until the next one
    reader = csv.reader(read_lines(path), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            what = "tab-separated values" if delimiter == TAB else f"values separated by {delimiter!r}"
            hint = 'A field that begins with " must be quoted, its quotes doubled, as in CSV.'
            raise DataError(path, f"no {what} ({error})", line=line, hint=hint) from error
        if row is None:
            return
        if row:
            yield line, row


def read_plain_table(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, fields) of a tab-separated table whose quotes are characters like others, as MS MARCO's are."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.isspace():
            yield number, line.rstrip("\r\n").split(TAB)


def columns_of(path: str | Path, header: list[str], names: tuple[str, ...]) -> list[int]:
    """Positions of the columns `names` in the header (the first row).

    Raises:
        DataError: one of them is missing.
    """
    missing = [name for name in names if name not in header]
    if missing:
        problem = f"the header has no column {', '.join(map(repr, missing))}"
        raise DataError(path, problem, line=1, hint=f"Expected the tab-separated columns {', '.join(names)}.")
    return [header.index(name) for name in names]
