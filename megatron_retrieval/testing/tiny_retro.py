"""Chunks and neighbours small enough for a test to run in milliseconds, of any token ids, without a search."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_retrieval.data.stores.chunk_encoding import ChunkedDocument, columns_of
from megatron_retrieval.data.stores.chunk_selection import ChunkSelectionConfig
from megatron_retrieval.data.stores.chunk_writer import ChunkWriter, finish_chunks
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.neighbor_writer import NeighborWriter, finish_neighbors
from megatron_retrieval.data.stores.neighbors import NeighborStore
from megatron_retrieval.data.stores.ragged import Rows, token_dtype
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe
from megatron_retrieval.tokenizers.vocabularies import open_encoder_vocabulary


def write_tiny_chunks(
    folder: Path,
    documents: Sequence[Sequence[int]],
    chunk_length: int,
    vocab_file: Path | None = None,
    sources: Sequence[int] | None = None,
) -> ChunkStore:
    """A chunk folder of documents of these token ids; each token stands for a byte, and titles are numbers.

    Args:
        folder: to create.
        vocab_file: a vocabulary that has the ids; default: a byte-level BPE of 300 tokens, in the folder above.
        sources: number of the input file of each document; default: all of the first.
    """
    folder.mkdir(parents=True)
    vocabulary = open_encoder_vocabulary(vocab_file or write_byte_bpe(folder.parent / "bpe"))
    dtype = token_dtype(vocabulary.vocab_size)
    chunked = [
        ChunkedDocument(f"title {number}", source, 0, np.array(ids, dtype), np.arange(len(ids) + 1))
        for number, (ids, source) in enumerate(zip(documents, sources or [0] * len(documents), strict=True))
    ]
    with contextlib.ExitStack() as files:
        writer = ChunkWriter(folder, chunk_length, files)
        writer.write(columns_of(chunked, chunk_length, len(documents)))
        writer.sync()
    finish_chunks(folder, vocabulary, chunk_length, writer.progress, [])
    return ChunkStore(folder)


def write_tiny_neighbors(
    folder: Path, chunks: ChunkStore, rows: Rows, selection: ChunkSelectionConfig | None = None
) -> NeighborStore:
    """A neighbour folder of these rows [N, K], all at distance 0 and without overlap.

    Args:
        folder: to create.
        selection: default: nothing is held out.
    """
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as files:
        writer = NeighborWriter(folder, chunks, files)
        writer.write(rows, np.where(rows < 0, np.inf, 0.0), np.zeros(rows.shape, np.int64))
        writer.sync()
    finish_neighbors(folder, chunks, chunks, rows.shape[1], selection or ChunkSelectionConfig(valid_fraction=0), {})
    return NeighborStore(folder, chunks)
