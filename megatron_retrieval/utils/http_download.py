"""Downloads over HTTP that continue after a cut connection; a file gets its name when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.utils.files import BROKEN_GZIP, open_binary
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.part_file import PartFile, Version, part_file
from megatron_retrieval.utils.progress import progress_bar

_BLOCK_BYTES = 1 << 20
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
#: answers that may be better next time: timeout, too early, too many requests, and all of the server's own errors
_PASSING_STATUS = frozenset({408, 425, 429, *range(500, 600)})
_RANGE_NOT_SATISFIABLE = 416

log = get_logger("download")


@dataclass(kw_only=True, frozen=True)
class PatienceConfig:
    """When a download fails."""

    max_retries: int = 8
    """Consecutive attempts without a new byte before a download fails; pauses grow from 1 to 30 seconds."""
    timeout_seconds: float = 60.0
    """Seconds without data after which a connection counts as cut."""

    def __post_init__(self) -> None:
        if self.max_retries < 0 or self.timeout_seconds <= 0:
            raise ConfigError("--max-retries must not be negative, and --timeout-seconds must be positive.")


@dataclass(frozen=True)
class Expected:
    """Expected size and checksum of a file; None where unknown."""

    num_bytes: int | None = None
    sha256: str | None = None

    def problem(self, num_bytes: int, sha256: str) -> str:
        """What is wrong with a file of that size and checksum; empty where nothing is."""
        if self.num_bytes not in (None, num_bytes):
            return f"the file has {num_bytes:,} bytes instead of {self.num_bytes:,}"
        if self.sha256 not in (None, sha256):
            return f"the file's SHA-256 is {sha256} instead of {self.sha256}"
        return ""


@dataclass(frozen=True)
class Received:
    """A complete download."""

    num_bytes: int
    sha256: str
    last_modified: str | None


class _CutError(Exception):
    """An attempt that ended early; the next one may continue.

    Args:
        pause_seconds: the pause that the server asks for.
    """

    def __init__(self, reason: str, pause_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


def download(address: str, path: Path, expected: Expected, patience: PatienceConfig) -> Received:
    """Download `address` to `path`, continuing an earlier attempt in PATH.part.

    Proxies are those of the environment (http_proxy, https_proxy, no_proxy).

    Raises:
        DataError: the server refuses, the file is not the one that is expected, or too many attempts brought nothing.
    """
    with part_file(path, address) as part:
        with progress_bar(path.name, "B", expected.num_bytes, scaled=True) as progress:
            _receive(address, part, expected, patience, progress)
        part.sync()
        sha256 = file_sha256(part.path)
        problem = expected.problem(part.size, sha256)
        if not problem and expected.sha256 is None:
            problem = _gzip_problem(part.path)
        if problem:
            part.discard()
            hint = "What came was removed. Try again; if that does not help, the publisher may have changed the file."
            raise DataError(address, problem, hint=hint)
        received = Received(part.size, sha256, part.version.last_modified)
        part.publish()
    return received


def file_sha256(path: Path) -> str:
    """SHA-256 in 64 hex digits, as publishers give it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _receive(address: str, part: PartFile, expected: Expected, patience: PatienceConfig, progress: tqdm) -> None:
    """Repeat attempts until the part is complete."""
    num_failures, furthest = 0, part.size
    while not part.is_whole:
        try:
            _attempt(address, part, expected, patience.timeout_seconds, progress)
        except _CutError as cut:
            num_failures = 0 if part.size > furthest else num_failures + 1
            furthest = max(furthest, part.size)
            if num_failures > patience.max_retries:
                hint = "Run the command again; it continues where it stopped."
                problem = f"given up after {num_failures} attempts for nothing: {cut}"
                raise DataError(address, problem, hint=hint) from cut
            pause = min(_FIRST_PAUSE_SECONDS * 2**num_failures / 2, _LONGEST_PAUSE_SECONDS)
            pause = max(pause, min(cut.pause_seconds, _LONGEST_PAUSE_SECONDS))
            log.warning("%s: %s; trying again in %.0f s", part.path.name, cut, pause)
            time.sleep(pause)


def _attempt(address: str, part: PartFile, expected: Expected, timeout_seconds: float, progress: tqdm) -> None:
    """Request the missing bytes and write them.

    Raises:
        _CutError: not all of it came.
    """
    with _answer(address, part, expected, timeout_seconds) as answer:
        _accept(address, answer, part, expected)
        progress.total, progress.initial, progress.n = part.version.num_bytes, part.size, part.size
        progress.refresh()
        while block := answer.read(_BLOCK_BYTES):
            part.write(block)
            progress.update(len(block))
    if part.version.num_bytes is None:
        part.end_here()
    elif not part.is_whole:
        raise _CutError(f"the connection was cut at byte {part.size:,} of {part.version.num_bytes:,}")


@contextlib.contextmanager
def _answer(
    address: str, part: PartFile, expected: Expected, timeout_seconds: float
) -> Iterator[http.client.HTTPResponse]:
    """The server's response; connection errors become `_CutError`, also while the response is read."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "megatron-retrieval"}
    # without a name for the version, two of them could be joined unnoticed, unless a checksum tells in the end
    if part.size and (part.version.validator or expected.sha256):
        headers["Range"] = f"bytes={part.size}-"
        if part.version.validator:
            headers["If-Range"] = part.version.validator
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.build_opener().open(request, timeout=timeout_seconds) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        if error.code == _RANGE_NOT_SATISFIABLE and part.size:
            reason = f"the server has nothing behind byte {part.size:,}"
            part.begin(Version())
            raise _CutError(reason) from error
        problem, after = f"the server answers {error.code} ({error.reason})", error.headers.get("Retry-After", "")
        if error.code not in _PASSING_STATUS:
            raise DataError(address, problem, hint="Has the file moved?") from error
        raise _CutError(problem, float(after) if after.isdigit() else 0.0) from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(str(getattr(error, "reason", "")) or str(error) or type(error).__name__) from error


def _accept(address: str, answer: http.client.HTTPResponse, part: PartFile, expected: Expected) -> None:
    """Position the part for the body: at its end or, if the server sends the whole file, at the beginning."""
    if answer.headers.get_content_type() == "text/html":
        raise DataError(address, "the server sends a web page instead of the file")
    first_byte, version = _offered(answer)
    if expected.num_bytes is not None and version.num_bytes not in (None, expected.num_bytes):
        problem = f"the server offers {version.num_bytes:,} bytes, but the file has {expected.num_bytes:,}"
        raise DataError(address, problem, hint="The publisher may have changed it.")
    if version.num_bytes is None and expected == Expected() and not answer.chunked:
        raise DataError(address, "the server does not say how long the file is, and it is not recorded either")
    if first_byte is None:
        if part.size:
            log.warning("%s: the server sends the file from its beginning", part.path.name)
        part.begin(replace(version, num_bytes=version.num_bytes or expected.num_bytes))
    elif first_byte != part.size or not version.may_continue(part.version):
        part.begin(Version())
        raise _CutError("the file has changed since its beginning was fetched")
    _check_space(part)


def _offered(answer: http.client.HTTPResponse) -> tuple[int | None, Version]:
    """First byte of the response (None: the whole file), and the server's version of the file."""
    headers = answer.headers
    tags = headers.get("ETag"), headers.get("Last-Modified")
    if answer.status != http.client.PARTIAL_CONTENT:
        return None, Version(*tags, answer.length)
    part, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    start = part.partition("-")[0]
    return int(start) if start.isdigit() else -1, Version(*tags, int(total) if total.isdigit() else None)


def _check_space(part: PartFile) -> None:
    free = shutil.disk_usage(part.path.parent).free
    missing = (part.version.num_bytes or 0) - part.size
    if missing > free:
        raise DataError(part.path.parent, f"has room for {free:,} bytes, but {missing:,} are to come")


def _gzip_problem(path: Path) -> str:
    """What is wrong with the gzip stream, where it is one."""
    try:
        with open_binary(path) as file:
            while file.read(_BLOCK_BYTES):
                pass
    except BROKEN_GZIP as error:
        return f"the file is broken gzip ({error})"
    return ""
