"""Files of records of any kind, read one record at a time: JSON, tables, Parquet, Arrow, TREC topics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from megatron_retrieval.data.files.json_records import Record, read_json_lines, read_json_list, read_json_map
from megatron_retrieval.data.files.sniff import FileKind, form_of_table, sniff
from megatron_retrieval.data.files.tables import TableForm, read_plain_table, read_table
from megatron_retrieval.data.files.topics import read_topics
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_lines

_BATCH_ROWS = 1024
Item = TypeVar("Item")


@dataclass(frozen=True)
class Unnamed:
    """The columns of a table without a header.

    Attributes:
        columns: their names.
        quoted: fields are in CSV quotes, as DPR's are; otherwise quotes are characters, as in MS MARCO's.
    """

    columns: tuple[str, ...]
    quoted: bool = False


@dataclass(frozen=True)
class TableRecord(Record):
    """A row of a table, all of whose values are text.

    Attributes:
        has_header: the file names the columns.
    """

    has_header: bool = True


def read_records(path: str | Path, unnamed: Callable[[TableForm], Unnamed | None]) -> Iterator[Record]:
    """Yield the records of a file of the kind that `sniff` finds.

    Args:
        unnamed: the columns of a table without a header, from its first row; None where they are not known.

    Raises:
        DataError: anything malformed, with its line; or a kind that holds no records.
    """
    path = Path(path)
    kind = sniff(path)
    match kind:
        case FileKind.JSON_LIST:
            return read_json_list(path)
        case FileKind.JSON_LINES:
            return read_json_lines(path)
        case FileKind.JSON_MAP:
            return read_json_map(path)
        case FileKind.PARQUET | FileKind.ARROW:
            return _read_arrow(path, kind)
        case FileKind.TOPICS:
            return read_topics(path)
        case FileKind.SQUAD:
            hint = "Convert it: megatron-retrieval convert --format squad."
            raise DataError(path, "SQuAD's nested JSON is not read here", hint=hint)
        case FileKind.RUN:
            raise DataError(path, "a TREC run holds no texts", hint="Give it to megatron-retrieval mine --results.")
        case FileKind.OTHER_JSON:
            raise DataError(path, "expected a JSON list or JSON lines", line=1)
        case _:
            return _read_rows(path, unnamed)


def not_empty(path: str | Path, items: Iterator[Item], what: str) -> Iterator[Item]:
    """The items, of which there is at least one.

    Raises:
        DataError: there is none.
    """
    is_empty = True
    for item in items:
        is_empty = False
        yield item
    if is_empty:
        raise DataError(path, f"there are no {what} in the file")


def _read_rows(path: Path, unnamed: Callable[[TableForm], Unnamed | None]) -> Iterator[Record]:
    form = form_of_table(path)
    columns, rows = form.header, read_table(path, form.delimiter)
    if form.header:
        next(rows)
    elif not form.first_row:  # a blank file, or a broken one: reading it says where
        for _ in read_lines(path):
            pass
        return
    else:
        known = unnamed(form)
        if known is None:
            raise _no_header(path, form.plain_row)
        columns, rows = known.columns, rows if known.quoted else read_plain_table(path)
    for line, row in rows:
        if len(row) != len(columns):
            raise DataError(path, f"expected {len(columns)} fields, found {len(row)}", line=line)
        yield TableRecord(path, line, dict(zip(columns, row, strict=True)), bool(form.header))


def _no_header(path: Path, row: Sequence[str]) -> DataError:
    found = f"{len(row)} fields, divided by tabs" if len(row) > 1 else "no tab"
    comma = " Commas divide fields only where a header names the columns." if len(row) == 1 and "," in row[0] else ""
    hint = f"Begin the file with a header such as id, title, text, or question, answers.{comma}"
    return DataError(path, f"no header that names known columns, and {found}", line=1, hint=hint)


def _read_arrow(path: Path, kind: FileKind) -> Iterator[Record]:
    """Yield the rows, numbered from 1; a batch of them is in memory."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        hint = "Install it: pip install 'megatron-retrieval[arrow]'."
        raise DataError(path, f"{kind.value} needs the library pyarrow", hint=hint) from error

    def batches() -> Iterator[pyarrow.RecordBatch]:
        if kind is FileKind.PARQUET:
            yield from pyarrow.parquet.ParquetFile(path).iter_batches(_BATCH_ROWS)
            return
        with pyarrow.memory_map(str(path)) as source:
            try:
                yield from pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                file = pyarrow.ipc.open_file(source)
                yield from map(file.get_batch, range(file.num_record_batches))

    row = 0
    try:
        for batch in batches():
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                for values in batch.slice(start, _BATCH_ROWS).to_pylist():
                    row += 1
                    yield Record(path, row, values)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(path, f"broken {kind.value.split(',')[0]} behind row {row} ({error})") from error
