"""The folder that `learn` keeps. What searches it reads the manifest and then opens one version, whole.

    OUTPUT/manifest.json            names the newest version, its encoder and the folder of the documents
    OUTPUT/versions/NAME/           evidence, bm25, embeddings-ENCODER, psgs.tsv, documents.json, report.json
    OUTPUT/encoders/NAME/           checkpoints of dual encoders: as given, and as adapted
    OUTPUT/parsed/                  passages of documents by their content
    OUTPUT/runs/NAME/               training, and what held-out retrieval was measured with

A version is named after all that it is made of: it is continued if the same is asked for again, and begun anew if not.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.manifest import ManifestFormat

_VERSION, _EMBEDDINGS, _ENCODER, _DOCUMENTS = "version", "embeddings", "encoder", "documents"
FORMAT = ManifestFormat(
    what="a learned folder",
    version=1,
    hint="Make it with: megatron-retrieval learn FOLDER.",
    keys=frozenset((_VERSION, _EMBEDDINGS, _ENCODER, _DOCUMENTS)),
)
#: names of files in a version
PASSAGES, DOCUMENTS, REPORT = "psgs.tsv", "documents.json", "report.json"


@dataclass(frozen=True)
class LearnedFolder:
    """The newest version in a folder that `learn` keeps; older ones stay readable for those who have them open.

    Attributes:
        version: folder of the version.
        embeddings: of its evidence.
        retriever: checkpoint of the encoder that made its embeddings.
        documents: folder of the documents, which may have moved.
    """

    folder: Path
    version: Path
    embeddings: Path
    retriever: Path
    documents: Path

    @property
    def evidence(self) -> Path:
        """The passages; their ids are places, see `Place`."""
        return self.version / "evidence"

    @property
    def bm25_index(self) -> Path:
        """Of the evidence."""
        return self.version / "bm25"

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The newest version.

        Raises:
            DataError: there is none, or the manifest is damaged.
        """
        with FORMAT.opened(folder) as entries:
            version, embeddings, encoder = (folder / entries[name] for name in (_VERSION, _EMBEDDINGS, _ENCODER))
            documents = Path(entries[_DOCUMENTS])
        return cls(folder, version, embeddings, encoder, documents)

    @classmethod
    def at(cls, folder: Path) -> Self | None:
        """The same; None where `folder` holds something else, such as evidence."""
        try:
            return cls.open(folder)
        except DataError:
            return None

    @classmethod
    def publish(cls, folder: Path, version: Path, embeddings: Path, encoder: Path, documents: Path) -> Self:
        """Make a complete version the newest; the one before, which a server may have open, stays, and others go."""
        before = cls.at(folder)
        entries = {
            _VERSION: str(version.relative_to(folder)),
            _EMBEDDINGS: str(embeddings.relative_to(folder)),
            _ENCODER: str(encoder.relative_to(folder)),
            _DOCUMENTS: str(documents.resolve()),
        }
        FORMAT.write(folder, entries)
        if before is None or before.version != version:
            kept = {version.name, before.version.name if before else ""}
            for other in version.parent.iterdir():
                if other.name not in kept:
                    shutil.rmtree(other, ignore_errors=True)
        return cls.open(folder)
