"""Finds the checkpoint behind the path that a person gives, and a place for what a session makes."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from megatron_retrieval.checkpoint.huggingface.formats import format_of, import_model
from megatron_retrieval.parallel.collectives import gather_objects, on_first_rank
from megatron_retrieval.parallel.topology import ProcessTopology

#: what a folder holds that is searched: an encoder, passages, their vectors, and their words
RETRIEVER, EVIDENCE, EMBEDDINGS, BM25 = "retriever", "evidence", "embeddings", "bm25"
#: and where answers are read
READER = "reader"


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
