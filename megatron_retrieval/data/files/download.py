"""Public files brought into a folder, with a record of what came."""

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
    """Names of what to download; --list shows them."""
    output_dir: Path | None = None
    """Folder for the files and downloads.json, which records sizes and SHA-256 of what came."""
    list: bool = False
    """Print names, sizes, licences and addresses, and do nothing."""
    expect: Path | None = None
    """The downloads.json of another folder: what comes must be the same, byte for byte."""
    patience: PatienceConfig = field(default_factory=PatienceConfig)
    """When a download is given up."""


def download_resources(config: DownloadConfig) -> None:
    """Bring every file of the resources; those that are there are checked instead.

    Raises:
        ConfigError: a resource or the folder is missing, or unknown.
        DataError: a file cannot be fetched, or is not what is known of it.
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
    """The record's entry for a file that is now there, whole."""
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
    """What the table and the records know of a file, which must be one thing."""
    known = [file.expected]
    known += [Expected(entry["bytes"], entry["sha256"]) for record in records if (entry := record.get(file.name))]
    sizes = {expected.num_bytes for expected in known} - {None}
    checksums = {expected.sha256 for expected in known} - {None}
    if len(sizes) > 1 or len(checksums) > 1:
        problem = f"records of this file disagree (SHA-256 {' and '.join(sorted(map(str, checksums)))})"
        raise DataError(file.name, problem, hint=f"Remove its entry from the {RECORD} that is wrong.")
    return Expected(next(iter(sizes), None), next(iter(checksums), None))


def _checked(path: Path, expected: Expected) -> Received:
    """A file that is there already, if it is what it should be."""
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
        raise DataError(path, "no record of downloads", hint=f"Expected a {RECORD} of tools/download_data.py.")
    return record
