"""Sequences of whole chunks with their neighbours, for language models that retrieve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megatron_retrieval.data.examples.batches import Share
from megatron_retrieval.data.examples.neighbour_arms import Choose
from megatron_retrieval.data.stores.chunks import SectionChoice
from megatron_retrieval.data.stores.neighbors import NeighborStore, Split
from megatron_retrieval.data.stores.ragged import Rows, to_offsets
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.types.retro import RetroBatch
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.seeds import generator

NO_LABEL, NO_ROW = -1, -1


class RetroDataset:
    """The documents of a split one after another, cut into sequences of whole chunks; a BatchSource.

    The order of the documents is one draw of the seed, that of the sequences the sampler's. The last sequence may lack
    chunks. A chunk keeps its neighbours in whatever sequence it stands (Borgeaud et al. 2022, arXiv 2112.04426, section
    2.2).

    Args:
        neighbors: with the chunks that they are of.
        seq_length: T, in tokens; a multiple of the length of a chunk.
        num_neighbors: k, at most as many as were saved; 0: none are read.
        split: the documents to train on, or those held out.
        sections: of texts cut into sections, take those of this parity alone.
        choose: what is read in the place of the neighbours, see `neighbour_arms`; default: these.
        seed: of the run.

    Raises:
        ConfigError: a length or a number does not fit the folders.
        DataError: the split holds no document.
    """

    def __init__(
        self,
        neighbors: NeighborStore,
        *,
        seq_length: int,
        num_neighbors: int,
        split: Split = "train",
        sections: SectionChoice = "all",
        choose: Choose | None = None,
        seed: int,
    ) -> None:
        self._neighbors, self._chunks, self._k = neighbors, neighbors.chunks, num_neighbors
        self._choose = choose
        length = self._chunks.chunk_length
        if seq_length % length or not seq_length:
            raise ConfigError(
                f"--seq-length {seq_length}: must be a multiple of {length}, the length of the chunks in "
                f"{self._chunks.folder}."
            )
        if num_neighbors > neighbors.num_saved:
            raise ConfigError(
                f"--retro-num-neighbors {num_neighbors}: {neighbors.folder} holds {neighbors.num_saved} of each chunk; "
                "search anew with a greater --retro-query-num-neighbors-save."
            )
        self.num_chunks = seq_length // length
        documents = chosen_documents(neighbors, split, sections)
        if not len(documents):
            raise DataError(self._chunks.folder, f"there is no document of the split {split!r}")
        self._documents: Rows = generator(seed, "document-order").permutation(documents)
        starts = self._chunks.documents
        self._places = to_offsets(starts[self._documents + 1] - starts[self._documents])
        get_logger("data").info("sequences: %s, of %s documents", f"{len(self):,}", f"{len(documents):,}")

    def __len__(self) -> int:
        return -(-int(self._places[-1]) // self.num_chunks)

    def rows(self, index: int) -> Rows:
        """[l] the rows of a sequence, -1 behind the last one."""
        places = index * self.num_chunks + np.arange(self.num_chunks)
        is_row = places < self._places[-1]
        number = np.searchsorted(self._places, np.where(is_row, places, 0), side="right") - 1
        rows = self._chunks.documents[self._documents[number]] + places - self._places[number]
        return np.where(is_row, rows, NO_ROW)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> RetroBatch:
        """See BatchSource; fillers are chunks of no document."""
        share = Share.of(len(indices), dp_rank, dp_size)
        rows = np.full((share.num_slots, self.num_chunks), NO_ROW, np.int64)
        for slot, index in enumerate(indices[share.own]):
            rows[slot] = self.rows(index)
        found = None if self._choose is None else self._choose(np.where(rows < 0, 0, rows), self._k)
        return retro_batch(self._neighbors, rows, self._k, found)


def chosen_documents(neighbors: NeighborStore, split: Split, sections: SectionChoice) -> Rows:
    """The numbers of the documents of a split that are sections of that parity."""
    documents = neighbors.documents(split)
    return documents[neighbors.chunks.in_sections(sections)[documents]]


def retro_batch(neighbors: NeighborStore, rows: Rows, k: int, found: Rows | None = None) -> RetroBatch:
    """What a model reads of sequences of rows.

    Args:
        rows: [n, l] rows of the chunks; -1 for none.
        k: neighbours of each.
        found: [n, l, k] rows of the database to read in place of the neighbours; -1 for none.
    """
    chunks = neighbors.chunks
    is_row = rows >= 0
    some = np.where(is_row, rows, 0)
    document = chunks.document_of(some)
    tokens, labels = _tokens_and_labels(neighbors, rows)
    is_first = is_row & (rows == chunks.documents[document])
    found = neighbors.rows(some, k) if found is None else found
    found = np.where(chunks.goes_on(rows)[..., None], found, NO_ROW)
    neighbor_tokens, neighbor_mask = neighbors.database.values(found)
    columns = (
        tokens,
        labels,
        np.where(is_row, document, NO_ROW),
        neighbor_tokens,
        neighbor_mask,
        np.where(is_row, chunks.chunk_bytes[some], 0).astype(np.int64),
        np.where(is_first, chunks.first_bytes[document], 0).astype(np.int64),
        np.where(is_row[..., None], neighbors.overlap(some, k), 0),
    )
    return RetroBatch(*map(torch.from_numpy, columns))


def _tokens_and_labels(neighbors: NeighborStore, rows: Rows) -> tuple[Rows, Rows]:
    """[n, l * m] tokens, and after each one the next of its document."""
    length = neighbors.chunks.chunk_length
    ids, mask = neighbors.chunks.values(rows)
    tokens = ids[..., :length]
    labels = np.where(mask[..., 1 : length + 1], ids[..., 1 : length + 1], NO_LABEL)
    return tokens.reshape(len(rows), -1), labels.reshape(len(rows), -1)
