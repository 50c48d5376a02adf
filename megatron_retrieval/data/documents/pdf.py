"""PDF, page by page; pages without text, such as scans, give none."""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_retrieval.data.documents.reader import DocumentReader, Line, Section, missing_library
from megatron_retrieval.errors import DataError

if TYPE_CHECKING:
    from pypdf import PdfReader

#: what the library raises on damaged files beside its own errors
_DAMAGE: tuple[type[Exception], ...] = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError)
_DAMAGE = (*_DAMAGE, TypeError, ValueError, OSError, EOFError, MemoryError, struct.error, zlib.error)
#: titles that programs give where nobody has
_NO_TITLE = re.compile(r"\s*(untitled.*|microsoft \w+ - .*|.*\.(docx?|tex|dvi|indd|pdf))?\s*", re.IGNORECASE)
#: a word divided at the end of a line
_HYPHEN = re.compile(r"(?<=[a-z]{2})-\n(?=[a-z]{2})")


def read_pdf(path: Path) -> Iterator[Section]:
    """One section; every line knows its page."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise missing_library(path, "pypdf", error) from error
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every flaw that it copes with
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError(path, "is encrypted", hint="Save it without a password.")
        title, lines = _title(reader), list(_lines(reader))
    except (PyPdfError, *_DAMAGE) as error:
        raise DataError(path, f"no PDF that can be read ({_reason(error)})") from error
    if not lines:
        raise DataError(path, "holds no text; is it scanned?", hint="Run OCR over it, for instance ocrmypdf.")
    yield Section(title, lines)


def _lines(reader: PdfReader) -> Iterator[Line]:
    for number, page in enumerate(reader.pages, 1):
        for line in _HYPHEN.sub("", page.extract_text()).splitlines():
            if line.strip():
                yield Line(line, f"page={number}")


def _title(reader: PdfReader) -> str:
    title = (reader.metadata.title if reader.metadata else None) or ""
    return "" if _NO_TITLE.fullmatch(title) else " ".join(title.split())


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


PDF = DocumentReader("pdf", "PDF with text; passages know their page", (".pdf",), read_pdf, library="pypdf")
