"""Readers of running text: documents of paragraphs, from several kinds of file, plain or gzip, in constant memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path

from megatron_retrieval.data.files.names import TEXTS, TITLES
from megatron_retrieval.data.files.passage_files import passage_of, read_passages
from megatron_retrieval.data.files.records import read_records
from megatron_retrieval.data.files.sentences import Document
from megatron_retrieval.data.files.sniff import FileKind, sniff
from megatron_retrieval.data.files.squad_json import read_paragraphs
from megatron_retrieval.data.files.training_files import as_biencoder, is_training
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_chunks

#: longer documents are cut, at white space if possible
MAX_DOCUMENT_CHARACTERS = 1 << 20
_PIECE_BYTES = 1 << 16
_PLAIN = (FileKind.TEXT, FileKind.TOPICS, FileKind.RUN)


def read_documents(path: str | Path) -> Iterator[Document]:
    """Yield the documents of a file of the kind that `sniff` finds.

    Records (JSON, Parquet, Arrow): the text, and the title where there is one; a newline in the text ends a paragraph,
    and so does an item where the text is a list (KILT). Of training data, each distinct positive is a document. Tables
    of passages (`psgs_w100.tsv`): consecutive ones with the same title are one document, each a paragraph. SQuAD JSON:
    an article is a document. Anything else is plain text: a blank line ends a paragraph, and every paragraph is a
    document without title.

    Raises:
        DataError: anything malformed, with its line; or no text at all.
    """
    return _not_empty(Path(path), _read(Path(path)))


def read_whole_documents(path: str | Path) -> Iterator[Document]:
    """As `read_documents`, but of one paragraph each, their text with all its white space.

    Texts of records stay as they are, the items of a list joined by newlines; passages of a table are joined by spaces,
    paragraphs of an article by newlines. A file of plain text is a single document.

    Raises:
        DataError: as `read_documents`.
    """
    path = Path(path)
    kind = sniff(path)
    if kind in _PLAIN:
        return _not_empty(path, _read_plain_whole(path))
    between = " " if kind is FileKind.TABLE else "\n"
    texts = ((title, between.join(parts)) for title, parts in _texts(path, kind))
    pieces = ((title, enumerate(_cut(text))) for title, text in texts)
    return _not_empty(path, (Document(title, (text,), number > 0) for title, cut in pieces for number, text in cut))


def _not_empty(path: Path, documents: Iterable[Document]) -> Iterator[Document]:
    is_empty = True
    for document in documents:
        is_empty = False
        yield document
    if is_empty:
        raise DataError(path, "there is no text in the file")


def _read(path: Path) -> Iterator[Document]:
    kind = sniff(path)
    if kind in _PLAIN:
        return _read_plain(path)
    return chain.from_iterable(_documents(title, texts) for title, texts in _texts(path, kind))


def _texts(path: Path, kind: FileKind) -> Iterator[tuple[str, Iterable[str]]]:
    """Title and texts of each document of a file that is not plain text."""
    match kind:
        case FileKind.SQUAD | FileKind.OTHER_JSON:
            return _texts_of_squad(path)
        case FileKind.TABLE:
            return _texts_of_table(path)
        case _:
            return _texts_of_records(path)


def _texts_of_records(path: Path) -> Iterator[tuple[str, Iterable[str]]]:
    """Running text, KILT's as a list of paragraphs; or the distinct positives of training data."""
    seen: set[bytes] = set()
    for record in read_records(path, lambda row: None):
        if not is_training(record):
            yield record.text(*TITLES, default=""), record.strings(*TEXTS)
            continue
        for context in map(passage_of, as_biencoder(record).records("positive_ctxs")):
            name = hashlib.blake2b(f"{context.title}\n{context.text}".encode(), digest_size=16).digest()
            if name not in seen:
                seen.add(name)
                yield context.title, [context.text]


def _texts_of_table(path: Path) -> Iterator[tuple[str, Iterable[str]]]:
    passages = (passage for _, passage in read_passages(path))
    for title, of_title in groupby(passages, attrgetter("title")):
        texts = (passage.text for passage in of_title)
        if title:
            yield title, texts
        else:  # passages without a title are documents of their own
            yield from (("", [text]) for text in texts)


def _texts_of_squad(path: Path) -> Iterator[tuple[str, Iterable[str]]]:
    for title, paragraphs in read_paragraphs(path):
        yield title, (paragraph.text("context") for paragraph in paragraphs)


def _read_plain_whole(path: Path) -> Iterator[Document]:
    held: list[str] = []
    size, is_continuation = 0, False
    for piece in read_chunks(path, _PIECE_BYTES):
        held.append(piece)
        size += len(piece)
        if size > MAX_DOCUMENT_CHARACTERS:
            *whole, rest = _cut("".join(held))
            for text in whole:
                yield Document("", (text,), is_continuation)
                is_continuation = True
            held, size = [rest], len(rest)
    yield Document("", ("".join(held),), is_continuation)


def _read_plain(path: Path) -> Iterator[Document]:
    """Hold one paragraph at a time, of a line without end no more than is cut off as a document."""
    held: list[str] = []
    size, is_continuation, is_blank = 0, False, True
    for piece in _line_pieces(path):
        is_blank = is_blank and not piece.strip()
        ends_line = piece.endswith("\n")
        if ends_line and is_blank:
            if size:
                yield Document("", ("".join(held),), is_continuation)
            held, size, is_continuation = [], 0, False
        elif size or not is_blank:
            held.append(piece)
            size += len(piece)
        if size > MAX_DOCUMENT_CHARACTERS:
            *whole, rest = _cut("".join(held))
            for text in whole:
                yield Document("", (text,), is_continuation)
                is_continuation = True
            held, size = [rest], len(rest)
        is_blank = is_blank or ends_line
    if size:
        yield Document("", ("".join(held),), is_continuation)


def _line_pieces(path: Path) -> Iterator[str]:
    """The lines of a file with their ends, long ones in pieces."""
    for chunk in read_chunks(path, _PIECE_BYTES):
        yield from re.findall(r"[^\n]*\n|[^\n]+", chunk)


def _documents(title: str, texts: Iterable[str]) -> Iterator[Document]:
    """One document, or several where the texts are longer than `MAX_DOCUMENT_CHARACTERS` together."""
    held: list[str] = []
    size, is_continuation = 0, False
    for piece in chain.from_iterable(map(_cut, chain.from_iterable(map(_paragraphs, texts)))):
        if held and size + len(piece) > MAX_DOCUMENT_CHARACTERS:
            yield Document(title, tuple(held), is_continuation)
            held, size, is_continuation = [], 0, True
        held.append(piece)
        size += len(piece)
    yield Document(title, tuple(held), is_continuation)


def _paragraphs(text: str) -> Iterator[str]:
    return (line[0] for line in re.finditer(r"[^\n]+", text) if not line[0].isspace())


def _cut(text: str) -> Iterator[str]:
    """Pieces of at most `MAX_DOCUMENT_CHARACTERS`, cut at a space of their second half if there is one."""
    start = 0
    while len(text) - start > MAX_DOCUMENT_CHARACTERS:
        limit = start + MAX_DOCUMENT_CHARACTERS
        space = text.rfind(" ", start + MAX_DOCUMENT_CHARACTERS // 2, limit)
        end = limit if space < 0 else space + 1
        yield text[start:end]
        start = end
    yield text[start:]
