"""Finds the checkpoint behind the path that a person gives, and a place for what a session makes."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path

from megatron_retrieval.applications.learn.folder import LearnedFolder
from megatron_retrieval.applications.search import SearchConfig, SearchOptionsConfig, newest_version
from megatron_retrieval.checkpoint.huggingface.formats import format_of, import_model
from megatron_retrieval.parallel.collectives import gather_objects, on_first_rank
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import EncodePassagesConfig

#: what a folder holds that is searched: an encoder, passages, their vectors, and their words
RETRIEVER, EVIDENCE, EMBEDDINGS, BM25 = "retriever", "evidence", "embeddings", "bm25"
#: and where answers are read
READER = "reader"


@dataclass(kw_only=True, frozen=True)
class RetrieverConfig:
    """How a retriever encodes and searches."""

    encode: EncodePassagesConfig = field(default_factory=EncodePassagesConfig)
    options: SearchOptionsConfig = field(default_factory=SearchOptionsConfig)


class Scratch:
    """A folder that all ranks share, and that goes with the last object that uses it."""

    def __init__(self, topology: ProcessTopology) -> None:
        made = on_first_rank(lambda: tempfile.mkdtemp(prefix="megatron-retrieval-"), topology.world_group)
        self._folder = Path(str(gather_objects(made, topology.world_group)[0]))
        self._count = 0
        if topology.is_main:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def new(self, name: str) -> Path:
        """The path of something that does not exist yet."""
        self._count += 1
        return self._folder / f"{self._count}-{name}"


def find_checkpoint(path: str | Path, part: str, scratch: Scratch, topology: ProcessTopology) -> Path:
    """The checkpoint at `path`: one of this project, or of Hugging Face or sentence-transformers, which is imported.

    Args:
        part: its name where `path` is a folder with other things beside it.

    Raises:
        CheckpointError: a model of others that cannot be imported.
    """
    path = Path(path)
    if (path / part).is_dir():
        path = path / part
    name = format_of(path)
    return path if name is None else import_model(name, [path], scratch.new("imported"), topology)


def find_index(path: Path, options: SearchOptionsConfig) -> SearchConfig | None:
    """What is searched in a folder, one that `learn` keeps or one with our parts; None where nothing is."""
    if LearnedFolder.at(path) is not None:
        return newest_version(SearchConfig(evidence=path, options=options))
    has_vectors, has_words = ((path / part).is_dir() for part in (EMBEDDINGS, BM25))
    if not (path / EVIDENCE).is_dir() or not (has_vectors or has_words):
        return None
    return SearchConfig(
        evidence=path / EVIDENCE,
        embeddings=path / EMBEDDINGS if has_vectors else None,
        retriever=path / RETRIEVER if has_vectors else None,
        bm25_index=path / BM25 if has_words else None,
        options=options,
    )
