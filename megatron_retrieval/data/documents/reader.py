"""Readers of documents: one row for each kind of file, chosen by the ending of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from megatron_retrieval.data.files.sniff import stem, suffix_of
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.registry import Registry


class Line(NamedTuple):
    """A piece of text; a blank one ends a paragraph.

    Attributes:
        at: where it stands in the file, see `Place`.
    """

    text: str
    at: str = ""


class Section(NamedTuple):
    """Text under one title, which passages may run through.

    Attributes:
        title: empty where the text has none; the file's name serves then.
    """

    title: str
    lines: Iterable[Line]


@dataclass(frozen=True)
class DocumentReader:
    """A kind of documents.

    Attributes:
        about: what files these are, in one clause.
        suffixes: endings of their names, in lower case, with the dot.
        read: gives the sections of a file; the lines of one are read before the next is asked for.
            Raises DataError: the file is damaged, encrypted or of another kind.
        library: distribution that reads it, whose version the text depends on; empty: none.
        holds_whole: the file is in memory as a whole, several times its size.
    """

    name: str
    about: str
    suffixes: tuple[str, ...]
    read: Callable[[Path], Iterator[Section]]
    library: str = ""
    holds_whole: bool = True


DOCUMENT_READERS = Registry[DocumentReader]("kind of documents")


def reader_of(path: str | Path) -> DocumentReader | None:
    """The reader of files with this ending; None: no reader has it."""
    suffix = suffix_of(path).lower()
    return next((reader for reader in DOCUMENT_READERS.values() if suffix in reader.suffixes), None)


def name_as_title(path: str | Path) -> str:
    """A title made of a file's name, which need not be valid Unicode."""
    return stem(path).replace("_", " ").encode(errors="replace").decode()


def missing_library(path: Path, library: str, error: ImportError) -> DataError:
    """What to raise where the library of a kind is not installed."""
    hint = "Install it: pip install 'megatron-retrieval[documents]'."
    return DataError(path, f"needs the library {library} ({error.name} is missing)", hint=hint)
