"""Readers of passage files: DPR's, BEIR's, Tevatron's, MS MARCO's and Pyserini's; tables, JSON, Parquet and Arrow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.data.files.names import PASSAGE_IDS, TEXTS, TITLES
from megatron_retrieval.data.files.records import TableRecord, Unnamed, not_empty, read_records
from megatron_retrieval.data.files.sniff import stem
from megatron_retrieval.data.files.tables import TableForm
from megatron_retrieval.errors import DataError
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.logging import get_logger

#: Pyserini's text of a passage with a title
_QUOTED_TITLE = re.compile(r'"([^\n]*)"\n')


def read_passages(path: str | Path, columns: Sequence[str] = ()) -> Iterator[tuple[int, Passage]]:
    """Yield (line, passage) of a file of records: a text, and a title and an id where there are any.

    Without an id, a passage is called by its file and line. A table without a header has two columns, id and text, as
    MS MARCO's collection.

    Args:
        columns: of a table without a header.

    Raises:
        DataError: anything malformed, with its line; or no passages at all.
    """
    path = Path(path)

    def unnamed(form: TableForm) -> Unnamed | None:
        row = form.plain_row
        if columns:
            return Unnamed(tuple(columns))
        if len(row) != 2 or not row[0] or any(map(str.isspace, row[0])):
            hint = "Name its columns: megatron-retrieval build evidence --columns title text."
            raise DataError(path, "the file has no header, nor does it hold ids and texts", line=1, hint=hint)
        return Unnamed(("id", "text"))

    num_unnamed = 0
    for record in not_empty(path, read_records(path, unnamed), "passages"):
        passage = passage_of(record)
        assert record.line is not None
        if not passage.id:
            if isinstance(record, TableRecord) and not record.values.keys().isdisjoint(PASSAGE_IDS):
                raise record.error("the id is empty")
            num_unnamed += 1
            passage = Passage(f"{'_'.join(stem(path).split())}:{record.line}", passage.title, passage.text)
        yield record.line, passage
    if num_unnamed:
        get_logger("data").info("%s: %s passages without an id are called by their line", path, f"{num_unnamed:,}")


def passage_of(record: Record) -> Passage:
    """A passage as passage files and training data hold it; the id is empty where there is none."""
    identifier, text = record.identifier(*PASSAGE_IDS), record.text(*TEXTS)
    title = record.text(*TITLES, default="")
    if not title and (quoted := _QUOTED_TITLE.match(text)) and "title" not in record.values:
        title, text = quoted[1], text[quoted.end() :]
    return Passage(identifier, title, text)
