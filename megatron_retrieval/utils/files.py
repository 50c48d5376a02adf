"""Atomic writing of files, and readers whose errors name the line at fault."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import glob
import gzip
import hashlib
import json
import os
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.utils.disk import sync_folder, writing
from megatron_retrieval.utils.logging import get_logger

GZIP_MAGIC = b"\x1f\x8b"
#: how the file begins that Git leaves in the place of one in Large File Storage
LFS_POINTER = b"version https://git-lfs"
#: a longer line is no record of a format that the project reads: the file lost its line ends
MAX_LINE_BYTES = 1 << 26
#: what reading a gzip file raises that is cut off or damaged
BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)

#: at the end of the names of temporary folders
_UNFINISHED = ".unfinished"


@contextlib.contextmanager
def atomic_file(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path` for writing; it replaces `path` only if the block succeeds, and is on the
    disk then.

    Raises:
        DiskError: the disk is full, read-only or failing.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            text_settings = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
            with open(descriptor, mode, **text_settings) as file:  # type: ignore[call-overload]
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
            sync_folder(path.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A temporary neighbour of the folder `path`; it becomes `path` only if the block succeeds.

    Raises:
        DataError: `path` exists already and is not an empty folder.
        DiskError: the disk is full, read-only or failing.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(path, "exists already", hint="Remove it or choose another folder.")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary = Path(tempfile.mkdtemp(_UNFINISHED, f".{path.name}.", path.parent))
        os.chmod(temporary, 0o755)
        held = os.open(temporary, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(held, fcntl.LOCK_EX)
            yield temporary
            if path.exists():
                path.rmdir()
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            os.close(held)
            shutil.rmtree(temporary, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove temporary neighbours of `path` whose processes were killed: nobody holds them."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????{_UNFINISHED}"):
        with contextlib.suppress(OSError):
            held = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(held)


def lock_file(path: Path, refusal: str) -> IO[str]:
    """Lock a file for this process, until the file that is returned is closed or the process ends, however it ends.

    Args:
        refusal: what to say where another process has the lock; `{holder}` becomes its host and number.

    Raises:
        ConfigError: another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise ConfigError(refusal.format(holder=holder)) from None
    except OSError as error:
        get_logger("files").warning("%s: this file system has no locks (%s), so none is held", path, error.strerror)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def link(target: Path, path: Path) -> None:
    """Make `path` lead to `target`, which stands beside it; what it led to before is replaced at once."""
    new = path.with_name(f"{path.name}.partial")
    new.unlink(missing_ok=True)
    new.symlink_to(target.name)
    new.replace(path)


def read_json(path: str | Path) -> Any:
    """Parse a JSON file, plain or gzip.

    Raises:
        DataError: missing, not UTF-8, broken gzip, or not JSON (with the line).
    """
    text = "".join(read_lines(path, allow_empty=True, max_line_bytes=-1))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"not valid JSON ({error.msg}); is the file cut off?" if text else "the file is empty"
        raise DataError(path, problem.rstrip("?"), line=error.lineno) from error


def read_lines(path: str | Path, *, allow_empty: bool = False, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, plain or gzip, with their line ends.

    Args:
        max_line_bytes: bounds the memory; -1: the file may be one long line.

    Raises:
        DataError: missing, empty, not UTF-8 (with the line), broken gzip, or a line that is too long.
    """
    number = 0
    try:
        with open_binary(path) as file:
            for number, line in enumerate(iter(partial(file.readline, max_line_bytes), b""), 1):
                if len(line) == max_line_bytes and not line.endswith(b"\n"):
                    problem = f"the line is longer than {max_line_bytes:,} bytes"
                    raise DataError(path, problem, line=number, hint="Did the file lose its line ends?")
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1} of the line is not UTF-8"
        raise DataError(path, problem, line=number, hint="Convert the file, for instance with iconv.") from error
    except BROKEN_GZIP as error:
        raise DataError(path, f"broken gzip after line {number}", hint="Fetch the file again.") from error
    if number == 0 and not allow_empty:
        raise DataError(path, "the file is empty")


def read_chunks(path: str | Path, chunk_bytes: int = 1 << 22) -> Iterator[str]:
    """Yield a UTF-8 text file, plain or gzip, in pieces: for files whose lines may be longer than the memory.

    Raises:
        DataError: missing, empty, not UTF-8 (with the line) or broken gzip.
    """
    decoder, line, is_empty = codecs.getincrementaldecoder("utf-8-sig")(), 1, True
    try:
        with open_binary(path) as file:
            while block := file.read(chunk_bytes):
                text, is_empty = decoder.decode(block), False
                line += text.count("\n")
                yield text
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise DataError(path, "not UTF-8", line=line, hint="Convert the file, for instance with iconv.") from error
    except BROKEN_GZIP as error:
        raise DataError(path, f"broken gzip after line {line}", hint="Fetch the file again.") from error
    if is_empty:
        raise DataError(path, "the file is empty")


def open_binary(path: str | Path) -> IO[bytes]:
    """Open a file for reading, unpacking gzip by its magic bytes rather than by its name.

    Raises:
        DataError: missing, a folder, unreadable, or a Git LFS pointer.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise DataError(path, "a Git LFS pointer, not the file itself", hint="Fetch the file with: git lfs pull")
        return gzip.open(path, "rb") if start.startswith(GZIP_MAGIC) else open(path, "rb")  # type: ignore[return-value]
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})") from error


def sampled_fingerprint(path: str | Path) -> str:
    """SHA-256 (first 16 hex digits) over a file's size and 64 samples of 64 KiB at equal distances; of up to 4 MiB
    over all of it. Costs the same for a file of any size, and misses a change between samples that keeps the size."""
    size, sample, num_samples = os.path.getsize(path), 1 << 16, 64
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for number in range(num_samples):
            file.seek(number * max(sample, (size - sample) // (num_samples - 1)))
            digest.update(file.read(sample))
    return digest.hexdigest()[:16]


def file_fingerprint(*paths: str | Path) -> str:
    """SHA-256 (first 16 hex digits) over the contents of the files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]
