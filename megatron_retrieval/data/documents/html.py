"""HTML: the main text of a page, without menus and scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_retrieval.data.documents.reader import DocumentReader, Line, Section, missing_library
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import open_binary

#: what the libraries raise on damaged pages; lxml's is a SyntaxError
_DAMAGE = (AttributeError, LookupError, RecursionError, SyntaxError, TypeError, ValueError)


def read_html(path: Path) -> Iterator[Section]:
    """One section; a page without main text gives all of its text."""
    try:
        import trafilatura
    except ImportError as error:
        raise missing_library(path, "trafilatura", error) from error
    with open_binary(path) as file:
        content = file.read()
    if b"\0" in content[:1024] and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(path, "is binary, no HTML")
    try:
        found = trafilatura.bare_extraction(content, favor_recall=True, include_comments=False, with_metadata=True)
        title, text = (found.title or "", found.text or "") if found else ("", "")
        text = text or trafilatura.html2txt(content)
    except _DAMAGE as error:
        raise DataError(path, f"no HTML that can be read ({type(error).__name__})") from error
    # the library gives a paragraph a line
    yield Section(" ".join(title.split()), (Line(part) for line in text.splitlines() for part in (line, "")))


HTML = DocumentReader(
    "html", "HTML; menus and scripts are left out", (".html", ".htm", ".xhtml"), read_html, library="trafilatura"
)
