"""The first stage: every document of the folder is read once, whatever its name, and again only when it changes."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.learn.config import LearnConfig
from megatron_retrieval.config.extensions import load_extension, loaded_extensions
from megatron_retrieval.data.documents.folder import FoundFile, find_documents
from megatron_retrieval.data.documents.parsed import ParsedDocuments, read_document
from megatron_retrieval.data.documents.place import Place
from megatron_retrieval.data.documents.reader import name_as_title
from megatron_retrieval.errors import DataError
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import atomic_file, file_fingerprint
from megatron_retrieval.utils.progress import progress_bar
from megatron_retrieval.utils.worker_pool import worker_pool


@dataclass
class Documents:
    """The documents of a folder, as they were read.

    Attributes:
        files: one for each content, under the shortest of its names, with where its passages are kept.
        same_as: other names of a file.
        problems: files that could not be read, each with the reason.
        others: number of files of kinds that are not read, by the ending of their name.
        num_read: files that were new or had changed.
        unreadable: where it is kept that a file cannot be read.
    """

    parsed: ParsedDocuments
    files: dict[Path, FoundFile] = field(default_factory=dict)
    same_as: dict[Path, list[str]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    num_read: int = 0
    unreadable: set[Path] = field(default_factory=set)

    @property
    def fingerprint(self) -> str:
        """Names the passages, their order and their ids."""
        contents = (f"{file.name!r} {path.name}" for path, file in self.files.items())
        listing = "\n".join([self.parsed.folder.name, *contents])
        return hashlib.sha256(listing.encode()).hexdigest()[:16]

    def passages(self) -> Iterator[Passage]:
        """All passages; the id of each is its place."""
        for path, file in self.files.items():
            title_of_file, numbers = name_as_title(file.path), count(1)
            for title, text, at in self.parsed.passages(path):
                yield Passage(Place(file.name, at, next(numbers)).id, title or title_of_file, text)

    def remove_others(self) -> None:
        """Forget documents that are not in the folder any more."""
        for path in self.parsed.folder.iterdir():
            if path not in self.files and path not in self.unreadable:
                path.unlink()

    def to_json(self) -> dict[str, Any]:
        """What was read and what was not, for the record."""
        names = ((file.name, self.same_as.get(path, [])) for path, file in self.files.items())
        return {
            "documents": [{"file": _plain(name), "same_as": [*map(_plain, others)]} for name, others in names],
            "not_read": {_plain(name): reason for name, reason in self.problems.items()},
            "other_kinds": dict(self.others),
        }


def read_documents(config: LearnConfig) -> Documents:
    """Read the documents that are new or have changed.

    Raises:
        DataError: there is no folder, or no document in it with text.
    """
    contents = find_documents(config.folder, config.max_file_megabytes, leave_out=config.learned)
    documents = Documents(ParsedDocuments.under(config.learned / "parsed", config.cutting))
    documents.problems, documents.others = dict(contents.skipped), contents.others
    for file in sorted(contents.files, key=lambda file: (len(file.name), file.name)):  # "a" rather than "copy of a"
        try:
            path = documents.parsed.path(file, file_fingerprint(file.path))
        except OSError as error:
            documents.problems[file.name] = f"cannot be read ({error.strerror})"
            continue
        if path in documents.files:
            documents.same_as.setdefault(path, []).append(file.name)
        else:
            documents.files[path] = file
    documents.files = dict(sorted(documents.files.items(), key=lambda item: item[1].name))
    _read_new(documents, config.workers)
    for path, file in list(documents.files.items()):
        if problem := documents.parsed.problem(path):
            documents.problems[file.name] = problem
            documents.unreadable.add(path)
            del documents.files[path]
    if not documents.files:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(documents.problems.items())[:3])
        raise DataError(config.folder, f"none of the documents can be read ({reasons})")
    return documents


def _read_new(documents: Documents, workers: int) -> None:
    new = [(file, path) for path, file in documents.files.items() if not path.exists()]
    documents.num_read = len(new)
    open_state = partial(_with_extensions, documents.parsed, loaded_extensions())
    with (
        worker_pool(read_document, min(workers, max(1, len(new))), open_state) as read,
        progress_bar("documents", "files", len(new)) as bar,
    ):
        for (file, path), problem in zip(new, read(new), strict=True):
            if problem:
                documents.problems[file.name] = problem
                del documents.files[path]
            bar.update()


def _with_extensions(parsed: ParsedDocuments, extensions: tuple[str, ...]) -> ParsedDocuments:
    """In a process that reads: the readers that extensions add are there too."""
    for name in extensions:
        load_extension(name)
    return parsed


def write_passages(path: Path, passages: Iterable[Passage]) -> None:
    """Write DPR's table of passages (id, text, title)."""
    with atomic_file(path) as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(("id", "text", "title"))
        for passage in passages:
            table.writerow((passage.id, passage.text, passage.title))


def _plain(name: str) -> str:
    """A file's name, which need not be valid Unicode, in characters of JSON."""
    return name.encode(errors="replace").decode()
