"""The manifest of an approximate index, which names its embeddings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from megatron_retrieval.errors import DataError, MismatchError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.utils.files import file_fingerprint
from megatron_retrieval.utils.manifest import ManifestFormat

INDEX_FILE = "index.faiss"
FORMAT = ManifestFormat(
    what="an approximate index",
    version=1,
    hint="Build the index with megatron-retrieval build index, which continues an unfinished one.",
)


@dataclass(frozen=True)
class IndexedVectors:
    """Names the embeddings that an index was built of."""

    evidence_fingerprint: str
    encoder_fingerprint: str
    embedding_dtype: str
    embeddings_checksum: str
    num_rows: int
    dimension: int

    @classmethod
    def of(cls, embeddings: EmbeddingStore) -> Self:
        """The name of a store's vectors; equal for equal vectors in equal shards."""
        manifest, identity = embeddings.manifest, embeddings.manifest.identity
        checksums = "/".join(shard.checksum for shard in manifest.shards)
        return cls(
            evidence_fingerprint=identity.evidence_fingerprint,
            encoder_fingerprint=identity.encoder_fingerprint,
            embedding_dtype=identity.dtype,
            embeddings_checksum=hashlib.sha256(checksums.encode()).hexdigest()[:16],
            num_rows=identity.num_rows,
            dimension=manifest.dimension,
        )


@dataclass(frozen=True)
class ApproximateManifest:
    """The content of `manifest.json` beside the index.

    Attributes:
        index_factory: faiss's name for the kind of index.
        training_sample: vectors that it was trained with; 0 for indexes without training.
        seed: of the sample and of the training.
        index_bytes: size of the index's file.
        index_checksum: of its content.
    """

    vectors: IndexedVectors
    index_factory: str
    training_sample: int
    seed: int
    index_bytes: int
    index_checksum: str

    def write(self, folder: Path) -> None:
        """Write the manifest; the index must be complete."""
        entries = {name: value for name, value in vars(self).items() if name != "vectors"}
        FORMAT.write(folder, {**vars(self.vectors), **entries})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a finished index, whose file has the recorded size.

        Raises:
            DataError: there is none, it is of another version, or the index is cut off.
        """
        with FORMAT.opened(folder) as entries:
            vectors = IndexedVectors(**{field.name: entries[field.name] for field in fields(IndexedVectors)})
            names = [field.name for field in fields(cls) if field.name != "vectors"]
            manifest = cls(vectors=vectors, **{name: entries[name] for name in names})
        FORMAT.require_sizes(folder, {INDEX_FILE: manifest.index_bytes})
        return manifest

    def require(self, embeddings: EmbeddingStore, folder: Path) -> None:
        """Refuse an index of other vectors than these.

        Raises:
            MismatchError: naming what differs.
        """
        given = vars(IndexedVectors.of(embeddings))
        for name, indexed in vars(self.vectors).items():
            if indexed != given[name]:
                raise MismatchError(
                    f"The index in {folder} was built of embeddings with {name.replace('_', ' ')} {indexed}, but that "
                    f"of {embeddings.directory} is {given[name]}; build an index of these embeddings "
                    "(megatron-retrieval build index), or give those that it was built of."
                )

    def verify(self, folder: Path) -> None:
        """Read the index once and compare its checksum.

        Raises:
            DataError: the content is not what was written.
        """
        if file_fingerprint(folder / INDEX_FILE) != self.index_checksum:
            raise DataError(folder / INDEX_FILE, "the checksum differs from the manifest's", hint=FORMAT.hint)
