"""Tab-separated files with CSV quotes, as DPR writes its passages and questions."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_lines


def read_table(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where the row begins, fields); blank lines are skipped.

    Raises:
        DataError: broken quotes, a field without end, or the file cannot be read.
    """
    # strict: a stray quote would otherwise swallow rows silently until the next one
    reader = csv.reader(read_lines(path), delimiter="\t", strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            hint = 'A field that begins with " must be quoted, its quotes doubled, as in CSV.'
            raise DataError(path, f"no tab-separated values ({error})", line=line, hint=hint) from error
        if row is None:
            return
        if row:
            yield line, row


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
