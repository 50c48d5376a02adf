"""Word's .docx: paragraphs and tables in their order."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_retrieval.data.documents.reader import DocumentReader, Line, Section, missing_library
from megatron_retrieval.errors import DataError

if TYPE_CHECKING:
    from docx.document import Document

_TITLE_STYLES = ("Title", "Heading 1")
#: unpacked; a file of kilobytes can unpack to more than the memory
_MOST_BYTES = 1 << 30
#: what damaged packages raise beside the library's own errors; lxml's is a SyntaxError
_DAMAGE = (AttributeError, LookupError, OSError, RuntimeError, SyntaxError, TypeError, ValueError)


def read_word(path: Path) -> Iterator[Section]:
    """One section; its title is that of the properties, or the first paragraph in the style of a title."""
    try:
        import docx
        from docx.opc.exceptions import OpcError
    except ImportError as error:
        raise missing_library(path, "python-docx", error) from error
    try:
        with zipfile.ZipFile(path) as package:
            if sum(part.file_size for part in package.infolist()) > _MOST_BYTES:
                raise DataError(path, f"unpacks to more than {_MOST_BYTES:,} bytes")
        document = docx.Document(str(path))
        title, lines = _title(document), list(_lines(document))
    except (OpcError, zipfile.BadZipFile, zlib.error, *_DAMAGE) as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise DataError(path, f"no Word document (.docx) that can be read ({reason})") from error
    yield Section(title, lines)


def _lines(document: Document) -> Iterator[Line]:
    """Each paragraph, and each row of a table, is a paragraph of the text."""
    for item in document.iter_inner_content():
        texts = [item.text] if hasattr(item, "text") else map(_row, item.rows)
        for text in texts:
            yield Line(text)
            yield Line("")


def _row(row: Any) -> str:
    """The cells of a row; a merged one, which the library repeats, once."""
    cells = (" ".join(cell.text.split()) for cell, _ in groupby(row.cells))
    return " | ".join(cell for cell in cells if cell)


def _title(document: Document) -> str:
    title = document.core_properties.title
    if not title or title == "Word Document":  # the template's
        styled = (item.text for item in document.paragraphs if item.style and item.style.name in _TITLE_STYLES)
        title = next(styled, "")
    return " ".join(title.split())


WORD = DocumentReader("word", "Word documents (.docx)", (".docx",), read_word, library="python-docx")
