"""The documents below a folder: which files are read, which are not and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_retrieval.data.documents.reader import reader_of
from megatron_retrieval.data.documents.registry import DOCUMENT_READERS
from megatron_retrieval.data.files.sniff import suffix_of
from megatron_retrieval.errors import DataError

_MEGABYTE = 1 << 20
#: of Word, while a document is open
_LOCK_FILE = "~$"


@dataclass(frozen=True)
class FoundFile:
    """A file that a reader is for.

    Attributes:
        name: its path relative to the folder, with slashes.
        state: size in bytes and time of change in nanoseconds.
    """

    path: Path
    name: str
    state: tuple[int, int]


@dataclass
class FolderContents:
    """What a folder holds.

    Attributes:
        files: to be read, sorted by name.
        skipped: names of files and folders that are not, each with the reason.
        others: number of files of kinds that no reader is for, by the ending of their name.
    """

    files: list[FoundFile] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)


def find_documents(folder: Path, max_megabytes: int, leave_out: Path | None = None) -> FolderContents:
    """The documents in a folder and below.

    Hidden files and folders are passed over. Links to files are followed, links to folders are not: they may lead
    round in circles.

    Args:
        max_megabytes: greatest size of a file of a kind that is read as a whole.
        leave_out: a folder that is none of the documents'.

    Raises:
        DataError: there is no such folder, or no file in it that a reader is for.
    """
    if not folder.is_dir():
        raise DataError(folder, "is no folder" if folder.exists() else "there is no such folder")
    contents = FolderContents()
    for path in _walk(folder, contents, leave_out.resolve() if leave_out else None):
        name = path.relative_to(folder).as_posix()
        reader = reader_of(path)
        if reader is None:
            contents.others[suffix_of(path).lower() or "no ending"] += 1
        elif not path.is_file():
            contents.skipped[name] = "a link that leads nowhere" if path.is_symlink() else "no regular file"
        else:
            status = path.stat()
            if reader.holds_whole and status.st_size > max_megabytes * _MEGABYTE:
                contents.skipped[name] = f"larger than {max_megabytes:,} MiB (--max-file-megabytes)"
            else:
                contents.files.append(FoundFile(path, name, (status.st_size, status.st_mtime_ns)))
    contents.files.sort(key=lambda file: file.name)
    if not contents.files and not contents.skipped:
        endings = ", ".join(suffix for reader in DOCUMENT_READERS.values() for suffix in reader.suffixes)
        raise DataError(folder, f"there are no documents in the folder ({endings})")
    return contents


def _walk(folder: Path, contents: FolderContents, leave_out: Path | None) -> Iterator[Path]:
    """The files; what cannot be entered is noted in `contents`."""

    def note(error: OSError) -> None:
        place = Path(os.fsdecode(error.filename)) if error.filename else folder
        contents.skipped[place.relative_to(folder).as_posix()] = f"cannot be entered ({error.strerror})"

    for place, folders, files in os.walk(folder, onerror=note):
        for name in list(folders):
            inner = Path(place, name)
            is_hidden = name.startswith(".") or (leave_out is not None and inner.resolve() == leave_out)
            if is_hidden or inner.is_symlink():
                folders.remove(name)
                if not is_hidden:
                    contents.skipped[inner.relative_to(folder).as_posix()] = "a link to a folder, which is not followed"
        yield from (Path(place, name) for name in files if not name.startswith((".", _LOCK_FILE)))
