"""What a file of passages, questions or text holds: told by its content first, then by its name."""

from __future__ import annotations

import contextlib
import enum
import re
from pathlib import Path

from megatron_retrieval.data.files.tables import TableForm, table_form
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import BROKEN_GZIP, open_binary

_START_BYTES = 1 << 16
_JSON_LIST, _JSON_OBJECT = re.compile(r"\[\s*[{\]]"), re.compile(r'\{\s*["}]')
_JSON_MAP = re.compile(r'\{\s*"[^"]*"\s*:\s*\{\s*"(question|answers|contexts|title|text)"')
_SQUAD = re.compile(r'\{\s*("version"\s*:\s*("[^"]*"|[0-9.]+)\s*,\s*)?"data"\s*:\s*\[')
_TOPICS = re.compile(r"<top>\s*<num>", re.IGNORECASE)
_RUN = re.compile(r"\S+\s+Q0\s+\S+\s+-?\d+\s+[-+.\w]+\s+\S+\s*(\n|$)")
#: of Parquet, of Arrow files, and of the Arrow streams that Hugging Face's `datasets` writes
_ARROW_MAGIC = {b"PAR1": "PARQUET", b"ARRO": "ARROW", b"\xff\xff\xff\xff": "ARROW"}


class FileKind(enum.Enum):
    """What a file holds."""

    JSON_LIST = "a JSON list of objects"
    JSON_LINES = "JSON objects, one a line"
    JSON_MAP = "a JSON object of objects, as Pyserini writes results"
    SQUAD = "a JSON object of SQuAD's form (or JSON lines whose first object has such a form)"
    TABLE = "columns with a header of known names; or anything else that is named .tsv"
    PARQUET = "Parquet"
    ARROW = "Arrow, a file or a stream"
    TOPICS = "TREC topics"
    RUN = "a TREC run"
    OTHER_JSON = "nothing that looks like JSON, in a file named .json"
    TEXT = "anything else, tables without a header included"


_BY_CONTENT = (
    (_JSON_LIST, FileKind.JSON_LIST),
    (_SQUAD, FileKind.SQUAD),
    (_JSON_MAP, FileKind.JSON_MAP),
    (_JSON_OBJECT, FileKind.JSON_LINES),
    (_TOPICS, FileKind.TOPICS),
    (_RUN, FileKind.RUN),
)
_BY_NAME = {".jsonl": FileKind.JSON_LINES, ".json": FileKind.OTHER_JSON, ".tsv": FileKind.TABLE}


def sniff(path: str | Path) -> FileKind:
    """The kind of a file, plain or gzip.

    Raises:
        DataError: the file is missing or empty.
    """
    start, suffix = _start(path), suffix_of(path)
    if kind := _ARROW_MAGIC.get(start[:4]):
        return FileKind[kind]
    text = start.decode("utf-8-sig", errors="replace").lstrip()
    is_table = "\t" in text.partition("\n")[0] and suffix in (".csv", ".tsv")  # a question may begin with a bracket
    for pattern, kind_of_text in _BY_CONTENT:
        if pattern.match(text) and not is_table:
            return kind_of_text
    if table_form(text, suffix).header:
        return FileKind.TABLE
    return _BY_NAME.get(suffix, FileKind.TEXT)


def form_of_table(path: str | Path) -> TableForm:
    """Delimiter and header of a table."""
    return table_form(_start(path).decode("utf-8-sig", errors="replace").lstrip(), suffix_of(path))


def suffix_of(path: str | Path) -> str:
    """The ending of a file's name, `.gz` aside."""
    return Path(Path(path).name.removesuffix(".gz")).suffix


def stem(path: str | Path) -> str:
    """A file's name without its ending and `.gz`."""
    return Path(Path(path).name.removesuffix(".gz")).stem


def _start(path: str | Path) -> bytes:
    """The beginning of a file, from the block with its first character that is not white space."""
    is_empty, block = True, b""
    with open_binary(path) as file, contextlib.suppress(*BROKEN_GZIP):  # reading on says where it is broken
        while block := file.read(_START_BYTES):
            is_empty = False
            if block.decode("utf-8-sig", errors="replace").strip():
                return block
        if is_empty:
            raise DataError(path, "the file is empty")
    return b""
