"""Downloads public files into a folder and records their sizes and checksums."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_retrieval.data.files.resources import RemoteFile, find_resource
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.utils.files import read_json, write_json
from megatron_retrieval.utils.http_download import Expected, PatienceConfig, Received, download, file_sha256
from megatron_retrieval.utils.logging import get_logger

RECORD = "downloads.json"

log = get_logger("download")


@dataclass(kw_only=True, frozen=True)
class DownloadConfig:
    """Download public data by name; run again to continue after a stop, or to check what is there."""

    resource: tuple[str, ...] = ()
    """Resources to download; --list shows their names."""
    output_dir: Path | None = None
    """Folder for the files and for downloads.json, which records their sizes and SHA-256."""
    list: bool = False
    """Print names, sizes, licences and addresses instead of downloading."""
    expect: Path | None = None
    """downloads.json of another folder; the files must be identical to those that it records."""
    patience: PatienceConfig = field(default_factory=PatienceConfig)
    """When a download fails."""


def download_resources(config: DownloadConfig) -> None:
    """Download every file of the resources; files that are there are checked instead.

    Raises:
        ConfigError: a resource or the folder is missing, or unknown.
        DataError: a file cannot be downloaded, or its size or checksum is not the expected one.
    """
    if not config.resource or config.output_dir is None:
        raise ConfigError("Give --resource and --output-dir, or --list to see what there is.")
    resources = [find_resource(name) for name in config.resource]
    records = [_read_record(config.output_dir / RECORD, required=False)]
    if config.expect is not None:
        records.append(_read_record(config.expect))
    for resource in resources:
        for file in resource.files:
            entry = {"resource": resource.name, **_bring(file, config.output_dir, records, config.patience)}
            records[0] = {**records[0], file.name: {**records[0].get(file.name, {}), **entry}}
            write_json(config.output_dir / RECORD, records[0])


def _bring(
    file: RemoteFile, folder: Path, records: Sequence[Mapping[str, Any]], patience: PatienceConfig
) -> dict[str, Any]:
    """Download or check a file; returns its entry in the record."""
    path, expected = folder / file.name, _expected(file, records)
    if path.exists():
        received = _checked(path, expected)
        log.info("%s is there already, %s bytes", path, f"{received.num_bytes:,}")
        return {"address": file.address, "bytes": received.num_bytes, "sha256": received.sha256}
    received = download(file.address, path, expected, patience)
    log.info("%s: %s bytes, SHA-256 %s", path, f"{received.num_bytes:,}", received.sha256)
    return {
        "address": file.address,
        "bytes": received.num_bytes,
        "sha256": received.sha256,
        "last_modified": received.last_modified,
        "downloaded": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _expected(file: RemoteFile, records: Sequence[Mapping[str, Any]]) -> Expected:
    """Size and checksum of a file according to the table and the records, which must agree."""
    known = [file.expected]
    known += [Expected(entry["bytes"], entry["sha256"]) for record in records if (entry := record.get(file.name))]
    sizes = {expected.num_bytes for expected in known} - {None}
    checksums = {expected.sha256 for expected in known} - {None}
    if len(sizes) > 1 or len(checksums) > 1:
        problem = f"records of this file disagree (SHA-256 {' and '.join(sorted(map(str, checksums)))})"
        raise DataError(file.name, problem, hint=f"Remove its entry from the {RECORD} that is wrong.")
    return Expected(next(iter(sizes), None), next(iter(checksums), None))


def _checked(path: Path, expected: Expected) -> Received:
    """Check a file that is there already."""
    if expected.sha256 is None:
        problem = "is there already, but nothing says whether it is whole"
        raise DataError(path, problem, hint=f"Move it away, or give a {RECORD} that knows it with --expect.")
    received = Received(path.stat().st_size, file_sha256(path), None)
    problem = expected.problem(received.num_bytes, received.sha256)
    if problem:
        raise DataError(path, problem, hint="Remove it to download it again.")
    return received


def _read_record(path: Path, *, required: bool = True) -> dict[str, Any]:
    if not required and not path.exists():
        return {}
    record = read_json(path)
    entries = record.values() if isinstance(record, dict) else [None]
    if not all(isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in entries):
        raise DataError(path, "no record of downloads", hint=f"Expected a {RECORD} of megatron-retrieval download.")
    return record
