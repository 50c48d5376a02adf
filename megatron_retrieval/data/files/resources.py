"""Public files to download, by name; `resources.yaml` holds their addresses, sizes and checksums."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.utils.http_download import Expected

TABLE = Path(__file__).with_name("resources.yaml")


@dataclass(frozen=True)
class RemoteFile:
    """A file to download, with its published size and checksum."""

    address: str
    expected: Expected

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]


@dataclass(frozen=True)
class Resource:
    """Files that belong together."""

    name: str
    about: str
    licence: str
    files: tuple[RemoteFile, ...]


@cache
def all_resources() -> dict[str, Resource]:
    """Every resource by its name, in the table's order."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {
        name: Resource(
            name,
            entry["about"],
            entry["licence"],
            tuple(RemoteFile(f["address"], Expected(f.get("bytes"), f.get("sha256"))) for f in entry["files"]),
        )
        for name, entry in table.items()
    }


def find_resource(name: str) -> Resource:
    """Raises ConfigError, with the nearest names, where there is no such resource."""
    known = all_resources()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, cutoff=0.4)
        hint = f"Perhaps you meant {' or '.join(nearest)}." if nearest else "--list shows all."
        raise ConfigError(f"--resource {name}: there is no such resource. {hint}")
    return known[name]
