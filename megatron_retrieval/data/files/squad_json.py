"""Reader of SQuAD JSON: articles of paragraphs with questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_retrieval.data.files.json_records import Record, read_json_member
from megatron_retrieval.errors import DataError


def read_paragraphs(path: str | Path) -> Iterator[tuple[str, list[Record]]]:
    """Yield the title of every article and its paragraphs, as SQuAD's records, holding one article at a time.

    The title is empty where there is none, as in files of annotation tools.

    Raises:
        DataError: no SQuAD file, or no article in it.
    """
    number = 0
    for number, article in enumerate(read_json_member(path, "data"), 1):  # noqa: B007
        yield article.text("title", default="").replace("_", " "), article.records("paragraphs")
    if number == 0:
        raise DataError(path, "there are no articles in the file")
