"""What the folder of an approximate index says of itself, and which embeddings it belongs to."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from megatron_retrieval.errors import DataError, MismatchError
from megatron_retrieval.index.store.embedding_store import MANIFEST, EmbeddingStore
from megatron_retrieval.utils.files import file_fingerprint, read_json, write_json

FORMAT_VERSION = 1
INDEX_FILE = "index.faiss"
_HINT = "Build it again (tools/build_index.py)."


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
        """Those of a store; equal for equal vectors in equal shards, whenever they were made."""
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
        training_sample: vectors that it was trained with; 0 where there was nothing to learn.
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
        """Seal the folder; the index must be complete."""
        entries = {name: value for name, value in vars(self).items() if name != "vectors"}
        write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, **vars(self.vectors), **entries})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a finished index, whose file is as long as it was.

        Raises:
            DataError: there is none, it is of another version, or the index is cut off.
        """
        path = folder / MANIFEST
        if not path.is_file():
            problem = "no finished index here" if folder.exists() else "the folder of the index does not exist"
            raise DataError(folder, problem, hint="Run tools/build_index.py; it continues where it stopped.")
        manifest = cls._parse(path, read_json(path))
        index = folder / INDEX_FILE
        size = index.stat().st_size if index.is_file() else 0
        if size != manifest.index_bytes:
            raise DataError(index, f"holds {size:,} bytes instead of {manifest.index_bytes:,}", hint=_HINT)
        return manifest

    @classmethod
    def _parse(cls, path: Path, raw: Any) -> Self:
        try:
            if raw["format_version"] != FORMAT_VERSION:
                problem = f"format version {raw['format_version']}, this program reads {FORMAT_VERSION}"
                raise DataError(path, problem, hint=_HINT)
            vectors = IndexedVectors(**{field.name: raw[field.name] for field in dataclasses.fields(IndexedVectors)})
            names = [field.name for field in dataclasses.fields(cls) if field.name != "vectors"]
            return cls(vectors=vectors, **{name: raw[name] for name in names})
        except (KeyError, TypeError) as error:
            raise DataError(path, f"not the manifest of an approximate index ({error!r})", hint=_HINT) from error

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
                    "(tools/build_index.py), or give those that it was built of."
                )

    def verify(self, folder: Path) -> None:
        """Read the index once and compare its checksum.

        Raises:
            DataError: the content is not what was written.
        """
        if file_fingerprint(folder / INDEX_FILE) != self.index_checksum:
            raise DataError(folder / INDEX_FILE, "the checksum differs from the manifest's", hint=_HINT)
