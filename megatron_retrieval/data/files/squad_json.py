"""Reader of SQuAD JSON: articles of paragraphs with questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_json


def read_paragraphs(path: str | Path) -> Iterator[tuple[str, list[Record]]]:
    """Yield the title of every article and its paragraphs, as SQuAD's records; the file is held in memory.

    The title is empty where there is none, as in files of annotation tools.

    Raises:
        DataError: no SQuAD file, or no article in it.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(path, "expected a SQuAD JSON object")
    articles = Record(Path(path), None, content).records("data")
    if not articles:
        raise DataError(path, "there are no articles in the file")
    for article in articles:
        yield article.text("title", default="").replace("_", " "), article.records("paragraphs")
