"""A partial download: the bytes so far, and the version of the file that they belong to."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_json, write_json


@dataclass(frozen=True)
class Version:
    """The version of a file on a server.

    Attributes:
        etag, last_modified: as the server says them; None where it does not.
        num_bytes: of the whole file.
    """

    etag: str | None = None
    last_modified: str | None = None
    num_bytes: int | None = None

    @property
    def validator(self) -> str | None:
        """What `If-Range` takes: a strong tag, or else the date (RFC 9110, section 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    def may_continue(self, other: Version) -> bool:
        """Nothing that both versions say of themselves differs."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return all(mine == others for mine, others in pairs if mine is not None and others is not None)


class PartFile:
    """PATH.part, the bytes so far, and PATH.part.json, which names the version that they are of.

    Attributes:
        path: of the part itself.
        version: of the file that its bytes begin.
    """

    def __init__(self, target: Path, address: str) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._target, self._address = target, address
        self._state = target.with_name(f"{target.name}.part.json")
        self._file = open(self.path, "ab")  # noqa: SIM115, `close` closes it
        self.version = Version()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise DataError(self.path, "another process is fetching it") from error
        self._continue()

    @property
    def size(self) -> int:
        return self._file.tell()

    @property
    def is_whole(self) -> bool:
        return self.version.num_bytes is not None and self.size >= self.version.num_bytes

    def begin(self, version: Version) -> None:
        """Drop all bytes and begin `version`."""
        self._file.truncate(0)
        self._file.seek(0)
        self.version = version
        write_json(self._state, {"address": self._address, **asdict(version)})

    def end_here(self) -> None:
        """Take the current size for the file's: the server named none and has ended."""
        self.version = replace(self.version, num_bytes=self.size)

    def write(self, block: bytes) -> None:
        """Append; unlike errors of the connection, those of the disk are final."""
        try:
            self._file.write(block)
        except OSError as error:
            raise DataError(self.path, f"cannot be written ({error.strerror})") from error

    def sync(self) -> None:
        """Bring the bytes to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def publish(self) -> None:
        """Rename the complete file to its final name."""
        os.replace(self.path, self._target)
        self._state.unlink(missing_ok=True)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)

    def close(self) -> None:
        """Keep the bytes for another attempt."""
        if not self.size:
            self.discard()
        self._file.close()

    def _continue(self) -> None:
        """Continue an earlier attempt, if it is of the same address."""
        try:
            state = read_json(self._state)
            if state.pop("address") == self._address:
                self.version = Version(**state)
        except (DataError, AttributeError, KeyError, TypeError):
            pass  # without its state a part cannot be continued
        if self.version == Version() or self.size > (self.version.num_bytes or self.size):
            self.begin(Version())


@contextlib.contextmanager
def part_file(target: Path, address: str) -> Iterator[PartFile]:
    """Begin or continue the download of `target`; the bytes are kept when the block fails.

    Raises:
        DataError: another process is downloading it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = PartFile(target, address)
    try:
        yield part
    finally:
        part.close()
