"""The kinds of documents that the package reads; modules of --extensions add others."""

from __future__ import annotations

from megatron_retrieval.data.documents.html import HTML
from megatron_retrieval.data.documents.pdf import PDF
from megatron_retrieval.data.documents.plain import MARKDOWN, TEXT
from megatron_retrieval.data.documents.reader import DOCUMENT_READERS
from megatron_retrieval.data.documents.rows import JSON, TABLE
from megatron_retrieval.data.documents.word import WORD

__all__ = ["DOCUMENT_READERS"]

for _reader in (TEXT, MARKDOWN, HTML, PDF, WORD, JSON, TABLE):
    DOCUMENT_READERS.add(_reader)
