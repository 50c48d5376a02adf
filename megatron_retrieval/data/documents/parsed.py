"""Documents cut into passages, kept by their content: what has been read once is not read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, NamedTuple

from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.data.documents.cutting import CutConfig, cut_passages
from megatron_retrieval.data.documents.folder import FoundFile
from megatron_retrieval.data.documents.reader import reader_of
from megatron_retrieval.data.documents.registry import DOCUMENT_READERS
from megatron_retrieval.data.files.sentences import SPLITTER
from megatron_retrieval.data.files.sniff import suffix_of
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import atomic_file, read_lines

_PROBLEM = "problem"


class CutPassage(NamedTuple):
    """A passage of a document.

    Attributes:
        title: empty where the document has none.
        at: where it begins, see `Place`.
    """

    title: str
    text: str
    at: str


@dataclass(frozen=True)
class ParsedDocuments:
    """A folder of parsed documents, each under the hash of its content; entries appear whole.

    Attributes:
        folder: of those that were read with these settings and versions of libraries.
    """

    folder: Path
    cutting: CutConfig

    @classmethod
    def under(cls, folder: Path, cutting: CutConfig) -> ParsedDocuments:
        """Those of `folder` that were cut so."""
        libraries = sorted({reader.library for reader in DOCUMENT_READERS.values()} - {""} | {SPLITTER})
        settings = {**to_flat_dict(cutting), **{library: _version(library) for library in libraries}}
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return cls(folder / name, cutting)

    def path(self, file: FoundFile, content: str) -> Path:
        """Where the passages of a file belong.

        Args:
            content: fingerprint of the file.
        """
        return self.folder / f"{content}{suffix_of(file.path).lower()}.jsonl"

    def problem(self, path: Path) -> str:
        """Why the document could not be read; empty: it could."""
        first = json.loads(next(read_lines(path)))
        return str(first.get(_PROBLEM, ""))

    def passages(self, path: Path) -> Iterator[CutPassage]:
        """The passages of a document; none of one that could not be read."""
        for number, line in enumerate(read_lines(path)):
            if number:
                yield CutPassage(**json.loads(line))

    def read(self, file: FoundFile, path: Path) -> str:
        """Read a file and keep its passages, or why it has none.

        Returns:
            What was wrong, where nothing was kept: the file changed meanwhile.
        """
        try:
            with atomic_file(path) as entry:
                entry.write("{}\n")
                if not self._write_passages(file.path, entry):
                    raise DataError(file.path, "holds no text")
        except DataError as error:
            where = f"line {error.line}: " if error.line is not None else ""
            with atomic_file(path) as entry:
                entry.write(json.dumps({_PROBLEM: where + error.problem}) + "\n")
        status = file.path.stat() if file.path.exists() else None
        if status is None or (status.st_size, status.st_mtime_ns) != file.state:
            path.unlink()
            return "changed while it was read; run the command again"
        return ""

    def _write_passages(self, path: Path, entry: IO[str]) -> int:
        """Append the passages of a file; returns their number."""
        number, reader = 0, reader_of(path)
        assert reader is not None
        for section in reader.read(path):
            for text, at in cut_passages(section.lines, self.cutting):
                passage = CutPassage(_plain(section.title), _plain(text), at)
                entry.write(json.dumps(passage._asdict(), ensure_ascii=False) + "\n")
                number += 1
        return number


def read_document(parsed: ParsedDocuments, task: tuple[FoundFile, Path]) -> str:
    """See `ParsedDocuments.read`; for a pool of workers."""
    return parsed.read(*task)


def _plain(text: str) -> str:
    """The text without what is no character: halves of surrogate pairs, and NUL, which PDF gives for unknown glyphs."""
    return text.encode(errors="replace").decode().replace("\0", " ")


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # its kind of documents is named as unreadable, until it is installed
        return ""
