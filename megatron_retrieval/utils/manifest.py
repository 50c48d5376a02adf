"""`manifest.json`: what the folder of an artefact says of itself. Each kind of artefact has one `ManifestFormat`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import file_fingerprint, read_json, write_json

MANIFEST = "manifest.json"
VERSION_KEY, FILE_BYTES, CHECKSUMS = "format_version", "file_bytes", "checksums"


@dataclass(frozen=True, kw_only=True)
class ManifestFormat:
    """How one kind of artefact describes itself.

    Attributes:
        what: the artefact, for errors: "embeddings", "a BM25 index".
        version: of the folder's layout; no other is read.
        hint: what to do about a folder that cannot be used, a full sentence.
        keys: entries that every manifest of this kind has.
    """

    what: str
    version: int
    hint: str = ""
    keys: frozenset[str] = frozenset()

    def write(self, folder: Path, entries: Mapping[str, object]) -> None:
        """Write the manifest; readers take the folder for complete from then on."""
        write_json(folder / MANIFEST, {VERSION_KEY: self.version, **entries})

    def seal(self, folder: Path, entries: Mapping[str, object]) -> None:
        """As `write`, with the size and the checksum of every file of the folder; these must be complete."""
        files = sorted(folder.iterdir())
        sizes = {file.name: file.stat().st_size for file in files}
        checksums = {file.name: file_fingerprint(file) for file in files}
        self.write(folder, {**entries, FILE_BYTES: sizes, CHECKSUMS: checksums})

    def compare(self, folder: Path) -> None:
        """Read every file of a sealed folder and compare its checksum.

        Raises:
            DataError: a file is not as it was written, or the folder was sealed before there were checksums.
        """
        checksums = self.read(folder).get(CHECKSUMS)
        if checksums is None:
            raise DataError(folder / MANIFEST, "holds no checksums, as an earlier version made it", hint=self.hint)
        for name, checksum in checksums.items():
            if file_fingerprint(folder / name) != checksum:
                raise DataError(folder / name, "the checksum differs from the manifest's", hint=self.hint)

    def read(self, folder: Path) -> dict[str, Any]:
        """The entries of a folder's manifest, without the version.

        Raises:
            DataError: there is no manifest, it is damaged or another artefact's, or of another version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            problem = f"{MANIFEST} is missing" if folder.is_dir() else "there is no such folder"
            raise DataError(folder, f"no {self.plain} here ({problem})", hint=self.hint)
        try:
            entries = read_json(path)
        except DataError as error:
            raise self.damaged(folder, error.problem) from error
        if not isinstance(entries, dict) or VERSION_KEY not in entries:
            raise self.damaged(folder, f"it has no {VERSION_KEY}")
        if (version := entries.pop(VERSION_KEY)) != self.version:
            problem = f"has format version {version} of {self.what}; this program reads version {self.version}"
            raise DataError(path, problem, hint=self.hint)
        if missing := sorted(self.keys - entries.keys()):
            raise self.damaged(folder, f"it has no {missing[0]}")
        return entries

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[dict[str, Any]]:
        """`read`, for a block that turns the entries into objects; an entry that it cannot use is damage.

        Raises:
            DataError: as `read`, and for a KeyError, TypeError, ValueError or AttributeError of the block.
        """
        entries = self.read(folder)
        try:
            yield entries
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.damaged(folder, repr(error)) from error

    def require_sizes(self, folder: Path, num_bytes: Mapping[str, int]) -> None:
        """Refuse a folder in which a file is missing or cut off.

        Args:
            num_bytes: sizes of files by name.

        Raises:
            DataError: naming the file.
        """
        for name, size in num_bytes.items():
            file = folder / name
            if not file.is_file():
                raise DataError(file, f"is missing from {self.what}", hint=self.hint)
            if file.stat().st_size != size:
                raise DataError(file, f"has {file.stat().st_size:,} bytes instead of {size:,}", hint=self.hint)

    def damaged(self, folder: Path, reason: str) -> DataError:
        """The error to raise where a manifest cannot be one of this kind."""
        return DataError(folder / MANIFEST, f"damaged, or not the manifest of {self.what} ({reason})", hint=self.hint)

    @property
    def plain(self) -> str:
        """The artefact without its article."""
        return self.what.removeprefix("a ").removeprefix("an ")
