"""What spans are looked for in: the evidence, a corpus of its own, or files in which others have found them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_retrieval.data.files.document_files import read_documents
from megatron_retrieval.data.files.json_records import Record, read_json_lines
from megatron_retrieval.data.salient.sentences import RawText
from megatron_retrieval.data.salient.spans import UNTYPED, Span
from megatron_retrieval.data.stores.evidence import EvidenceStore

#: passages read from the evidence at once
_BLOCK = 1024
#: EMDR2's files name the words of a span by their places among WordPiece tokens, both ends included
_PIECES = "bert_ent_pos"
_TEXTS, _SPANS, _PASSAGES = ("sentence", "text"), ("spans",), ("passage_id", "id")


def evidence_texts(evidence: EvidenceStore, first: int) -> Iterator[RawText]:
    """The passages from row `first` on."""
    for start in range(first, len(evidence), _BLOCK):
        rows = range(start, min(start + _BLOCK, len(evidence)))
        for row, passage in zip(rows, evidence.passages(rows), strict=True):
            yield RawText(row, passage.title, passage.text)


def document_texts(paths: Sequence[str]) -> Iterator[RawText]:
    """The paragraphs of text files.

    Raises:
        DataError: a file is malformed.
    """
    for path in paths:
        for document in read_documents(path):
            for paragraph in document.paragraphs:
                yield RawText(-1, document.title, paragraph)


def tagged_texts(paths: Sequence[str], evidence: EvidenceStore) -> Iterator[RawText]:
    """Sentences of JSON lines, with spans that somebody has found: {"passage_id", "sentence", "spans": [[start, end,
    type], ...]}, or EMDR2's with `bert_ent_pos`. Start and end count characters of the sentence as it is written there;
    its runs of white space become one space. A passage that the evidence lacks counts as none.

    Raises:
        DataError: a file is malformed, or a span is beyond its sentence or white space alone.
    """
    for path in paths:
        for record in read_json_lines(Path(path)):
            written = record.text(*_TEXTS)
            text = " ".join(written.split())
            identifier = record.identifier(*_PASSAGES)
            row = int(evidence.rows_of([identifier])[0]) if identifier else -1
            if _PIECES in record.values:
                spans = list(_of_pieces(record, text, evidence))
            else:
                spans = [_span(record, written, item) for item in record.values.get(_SPANS[0]) or ()]
            yield RawText(row, "", text, tuple(spans))


def _span(record: Record, written: str, item: Any) -> Span:
    """A span of the sentence with single spaces, given its place in the sentence as written."""
    match item:
        case [int(start), int(end), *rest] if 0 <= start < end <= len(written) and len(rest) <= 1:
            if words := " ".join(written[start:end].split()):
                before = written[: end - len(written[start:end].lstrip())]
                first = len(" ".join(f"{before}x".split())) - 1  # a letter keeps the space before it
                return Span(first, first + len(words), str(rest[0]) if rest else UNTYPED)
    problem = f"the span {item!r} is no [start, end, type] within the {len(written)} characters of its sentence"
    raise record.error(problem)


def _of_pieces(record: Record, text: str, evidence: EvidenceStore) -> Iterator[Span]:
    offsets = evidence.vocabulary.offsets(text)
    for item in record.values[_PIECES]:
        match item:
            case [int(first), int(last), *rest] if 0 <= first <= last < len(offsets) and len(rest) <= 1:
                yield Span(offsets[first][0], offsets[last][1], str(rest[0]) if rest else UNTYPED)
            case _:
                raise record.error(
                    f"{_PIECES!r}: {item!r} is no [first, last] of the {len(offsets)} tokens of its text"
                )
