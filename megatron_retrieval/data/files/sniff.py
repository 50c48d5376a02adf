"""What a file of passages, questions or text holds: told by its content first, then by its name."""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_retrieval.data.files.json_records import Record, read_json_lines, read_json_list
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import BROKEN_GZIP, open_binary

_START_BYTES = 1 << 16
_JSON_LIST, _JSON_OBJECT = re.compile(r"\[\s*[{\]]"), re.compile(r'\{\s*["}]')
_SQUAD = re.compile(r'\{\s*("version"\s*:\s*("[^"]*"|[0-9.]+)\s*,\s*)?"data"\s*:\s*\[')
_PASSAGE_COLUMNS = frozenset({"id", "title", "text"})


class FileKind(enum.Enum):
    """What a file holds."""

    JSON_LIST = "a JSON list of objects"
    JSON_LINES = "JSON objects, one a line"
    SQUAD = "a JSON object of SQuAD's form (or JSON lines whose first object has such a form)"
    PASSAGE_TABLE = "tab-separated columns with a header that names id, title or text"
    OTHER_JSON = "nothing that looks like JSON, in a file named .json"
    TEXT = "anything else, question tables included"

    @property
    def is_json_object(self) -> bool:
        """Whether the file begins with a JSON object."""
        return self in (FileKind.JSON_LINES, FileKind.SQUAD)


_BY_NAME = {".jsonl": FileKind.JSON_LINES, ".json": FileKind.OTHER_JSON, ".tsv": FileKind.PASSAGE_TABLE}


def sniff(path: str | Path) -> FileKind:
    """The kind of a file, plain or gzip.

    Raises:
        DataError: the file is missing or empty.
    """
    start, suffix = _start(path), suffix_of(path)
    first_line = start.partition("\n")[0].rstrip("\r").split("\t")
    is_table = len(first_line) > 1 and suffix in (".csv", ".tsv")  # a question may begin with a bracket
    by_content = (
        (_JSON_LIST, FileKind.JSON_LIST),
        (_SQUAD, FileKind.SQUAD),
        (_JSON_OBJECT, FileKind.JSON_LINES),
    )
    for pattern, kind in by_content:
        if pattern.match(start) and not is_table:
            return kind
    if len(first_line) > 1 and not _PASSAGE_COLUMNS.isdisjoint(first_line):
        return FileKind.PASSAGE_TABLE
    return _BY_NAME.get(suffix, FileKind.TEXT)


def read_json_records(path: Path) -> Iterator[Record] | None:
    """The objects of a JSON list or of JSON lines, one at a time; None where the file holds neither.

    Raises:
        DataError: the file is missing, empty or malformed.
    """
    kind = sniff(path)
    if kind is FileKind.JSON_LIST:
        return read_json_list(path)
    return read_json_lines(path) if kind.is_json_object else None


def suffix_of(path: str | Path) -> str:
    """The ending of a file's name, `.gz` aside."""
    return Path(Path(path).name.removesuffix(".gz")).suffix


def stem(path: str | Path) -> str:
    """A file's name without its ending and `.gz`."""
    return Path(Path(path).name.removesuffix(".gz")).stem


def _start(path: str | Path) -> str:
    """The beginning of a file from its first character that is not white space."""
    is_empty = True
    with open_binary(path) as file, contextlib.suppress(*BROKEN_GZIP):  # reading on says where it is broken
        while block := file.read(_START_BYTES):
            is_empty = False
            if start := block.decode("utf-8-sig", errors="replace").lstrip():
                return start
        if is_empty:
            raise DataError(path, "the file is empty")
    return ""
