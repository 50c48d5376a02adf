"""Compares the files of an artefact with the checksums that were written with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from megatron_retrieval.checkpoint.store.folders import holds_checkpoints, require_whole, resolve_checkpoint
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.index.approximate.manifest import ApproximateManifest
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.utils.files import read_json
from megatron_retrieval.utils.manifest import MANIFEST, ManifestFormat

#: evidence, corpora, questions, BM25
_SEALED = ManifestFormat(what="an artefact", version=1, hint="Make it anew.")


@dataclass(kw_only=True, frozen=True)
class VerifyConfig:
    """Read whole folders and compare every file with its checksum."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of checkpoints (of several the newest), evidence, corpora, embeddings, indexes or questions."""

    def __post_init__(self) -> None:
        if not self.folders:
            raise ConfigError("Give at least one folder to verify.")


def verify(folder: Path) -> Path:
    """Read a whole folder.

    Returns:
        What was read: the folder, or the newest checkpoint in it.

    Raises:
        CheckpointError, DataError: a file is not as it was written, or nothing says how it was.
    """
    if holds_checkpoints(folder):
        folder = resolve_checkpoint(folder)
    if not (folder / MANIFEST).is_file():
        raise DataError(folder, f"nothing says what this folder holds ({MANIFEST} is missing)")
    entries = read_json(folder / MANIFEST)
    if "layouts" in entries:
        require_whole(folder, compare_contents=True)
    elif "shards" in entries:
        EmbeddingStore(folder).verify()
    elif "index_checksum" in entries:
        ApproximateManifest.read(folder).verify(folder)
    else:
        _SEALED.compare(folder)
    return folder
