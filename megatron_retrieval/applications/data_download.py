"""Download public passages and questions by name, with resume and checksums."""

from __future__ import annotations

import sys

from megatron_retrieval.data.files.download import DownloadConfig, download_resources
from megatron_retrieval.data.files.resources import all_resources
from megatron_retrieval.reports.tables import text_table


def main(config: DownloadConfig) -> None:
    if config.list:
        sys.stdout.write(f"{listing()}\n")
    else:
        download_resources(config)


def listing() -> str:
    """All resources, each with a table of its files."""
    parts = []
    for resource in all_resources().values():
        rows = [
            (
                file.address,
                f"{file.expected.num_bytes:,}" if file.expected.num_bytes else "not recorded",
                file.expected.sha256 or "not recorded",
            )
            for file in resource.files
        ]
        table = text_table(("address", "bytes", "SHA-256"), rows)
        parts.append(f"{resource.name}: {resource.about}\nLicence: {resource.licence}\n{table}\n")
    return "\n".join(parts)
