"""Encodes passages shard by shard and batch by batch, continuing an earlier attempt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from torch import Tensor

from megatron_retrieval.index.store.embedding_writer import stored_vectors
from megatron_retrieval.index.store.partial_shard import PartialShard
from megatron_retrieval.parallel.collectives import any_rank, gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.retrieval.encode_batches import encoded_batches
from megatron_retrieval.types.tokens import TokenBatch, by_length, in_given_order
from megatron_retrieval.utils.progress import progress_bar
from megatron_retrieval.utils.read_ahead import read_ahead

#: between two updates of a bar that counts all processes
_LOOK_SECONDS = 2.0


class ShardWriter(Protocol):
    """Takes shards of embeddings, batch by batch and then whole."""

    def rows(self, shard: int) -> range:
        """The rows of the evidence in this shard."""
        ...

    def begin(self, shard: int, batch_sizes: Sequence[int]) -> PartialShard:
        """The shard in progress, which may hold batches of an earlier attempt.

        Args:
            batch_sizes: passages of each of its batches, in the order in which they are encoded.
        """
        ...

    def write(self, shard: int, vectors: Tensor) -> None:
        """Take a finished shard: [n, D] vectors of its rows, in order.

        Raises:
            MegatronRetrievalError: a vector holds NaN or infinity, or does not fit the stored type.
        """
        ...


class EmbeddingProgress(AbstractContextManager["EmbeddingProgress"]):
    """A bar of the passages encoded.

    Args:
        total: of all passages.
        num_done: rows done by all processes, asked from time to time; None: count the rows of this process.
    """

    def __init__(self, label: str, total: int, *, is_visible: bool, num_done: Callable[[], int] | None = None) -> None:
        self._num_done, self._looked_at = (num_done if is_visible else None), 0.0
        self._before = self._num_done() if self._num_done else 0
        self._bar = progress_bar(label, "passages", total - self._before, visible=is_visible)

    def advance(self, num_rows: int) -> None:
        """Count rows that this process has encoded."""
        if self._num_done is None:
            self._bar.update(num_rows)
        elif time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self._look(self._num_done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._num_done is not None:
            self._look(self._num_done)
        self._bar.close()

    def _look(self, num_done: Callable[[], int]) -> None:
        self._looked_at = time.monotonic()
        self._bar.update(num_done() - self._before - self._bar.n)


@dataclass(frozen=True)
class ShardEncoder:
    """Encodes shards of the evidence; tensor-parallel ranks do so together.

    Args:
        writes_all: every tensor-parallel rank writes; otherwise the first one of each copy alone.
    """

    job: EmbeddingJob
    writer: ShardWriter
    topology: ProcessTopology
    writes_all: bool = False

    def run(self, shards: list[int], progress: EmbeddingProgress, is_wanted: Callable[[], bool] = lambda: True) -> bool:
        """Encode and write these shards; the tokens of the next one are read meanwhile.

        Args:
            is_wanted: asked after every shard; False on one of the tensor-parallel ranks stops all of them.

        Returns:
            Whether all shards were encoded.
        """
        for shard, tokens in read_ahead(shards, lambda shard: self.job.tokens(self.writer.rows(shard))):
            batches = by_length(tokens.lengths, self.job.micro_batch_size, longest_first=True)
            vectors = self._encode(shard, tokens, batches, progress)
            if vectors is not None:
                self.writer.write(shard, in_given_order(vectors, batches))
            if any_rank(not is_wanted(), self.topology.groups.tp, self.topology.device):
                return False
        return True

    def _encode(
        self, shard: int, tokens: TokenBatch, batches: list[Tensor], progress: EmbeddingProgress
    ) -> Tensor | None:
        """The vectors [n, D] of all batches; None on a rank that does not write."""
        writes = self.writes_all or self.topology.tp_rank == 0
        part = self.writer.begin(shard, [len(batch) for batch in batches]) if writes else None
        # all tensor-parallel ranks skip the batches that the first of them finds done
        num_done = gather_objects(part.num_batches if part else 0, self.topology.groups.tp)[0]
        progress.advance(sum(len(batch) for batch in batches[:num_done]))
        first_row = self.writer.rows(shard).start
        to_do = batches[num_done:]
        encoded = encoded_batches(tokens, to_do, self.job.encode, self.topology.device)
        for batch, vectors in zip(to_do, encoded, strict=True):
            if part is not None:
                rows = [first_row + place for place in batch.tolist()]
                part.append(stored_vectors(vectors, rows, self.job.embedding_dtype))
            progress.advance(len(batch))
        return part.vectors() if part is not None else None
