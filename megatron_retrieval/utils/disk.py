"""What a disk does to files: its errors as sentences, places for maps, names that survive a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from megatron_retrieval.errors import DiskError

_FREE_SPACE = "Free some space, then give the same command again."
#: what keeps a file from being written, and what helps
_DISK_ERRORS = {
    errno.ENOSPC: ("the disk is full", _FREE_SPACE),
    errno.EDQUOT: ("the quota of the disk is used up", _FREE_SPACE),
    errno.EFBIG: ("it would be larger than a file may be (ulimit -f)", ""),
    errno.EROFS: ("the disk is read-only", ""),
    errno.EACCES: ("permission denied", ""),
    errno.EPERM: ("permission denied", ""),
    errno.EIO: ("the disk fails", ""),
}


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Have an error of the disk in this block name what could not be written: the system's does not.

    Raises:
        DiskError: the disk is full, read-only or failing.
    """
    try:
        yield
    except OSError as error:
        # an error that names a file elsewhere is not of writing this one
        named, folder = Path(os.fsdecode(error.filename or path)), Path(path).parent
        is_here = named.is_relative_to(folder) or folder.is_relative_to(named)
        # numpy's says how much was written, and not why no more
        number = errno.ENOSPC if error.errno is None and "requested and" in str(error) else error.errno
        if number not in _DISK_ERRORS or not is_here:
            raise
        problem, hint = _DISK_ERRORS[number]
        raise DiskError(f"{path}: cannot be written, {problem}." + (f" {hint}" if hint else "")) from error


def sentence_of_disk(error: OSError) -> str | None:
    """What an error of the disk says that names no file, or one that it names itself; None for other errors."""
    if error.errno not in _DISK_ERRORS:
        return None
    problem, hint = _DISK_ERRORS[error.errno]
    return f"{os.fsdecode(error.filename or 'a file')}: {problem}." + (f" {hint}" if hint else "")


def allocate(path: Path, num_bytes: int) -> Path:
    """Make a file whose bytes have their places on the disk, to be mapped: where a file has holes and the disk is full,
    writing to its map kills the process (SIGBUS)."""
    with open(path, "wb") as file:
        if num_bytes and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        file.truncate(num_bytes)
    return path


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: what was renamed, made or removed there stays so after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system on which this cannot be asked for
            raise
    finally:
        os.close(descriptor)
