"""PDF and Word files for tests; skips where the libraries that write them are missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest


def write_pdf(path: Path, pages: Sequence[str], *, title: str = "", password: str | None = None) -> None:
    """A PDF with a line of text on each page."""
    canvas = pytest.importorskip("reportlab.pdfgen.canvas", reason="the library reportlab is not installed")
    pdf = canvas.Canvas(str(path), encrypt=password)
    pdf.setTitle(title)
    for text in pages:
        pdf.drawString(72, 720, text)
        pdf.showPage()
    pdf.save()


def write_word(path: Path, title: str, paragraphs: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Word document with paragraphs and a table."""
    docx = pytest.importorskip("docx", reason="the library python-docx is not installed")
    document = docx.Document()
    document.core_properties.title = title
    for text in paragraphs:
        document.add_paragraph(text)
    table = document.add_table(rows=0, cols=2)
    for row in rows:
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text
    document.save(str(path))
