"""The whole evidence to vectors, shared over ranks: onto disk, continued where it stopped, or into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from megatron_retrieval.data.formatting import PassageFormat, TextFormatConfig
from megatron_retrieval.index import (
    EmbeddingStore,
    EmbeddingWriter,
    MemoryWriter,
    ShardedIndex,
    StorageDtype,
    StoreIdentity,
)
from megatron_retrieval.parallel import ProcessTopology
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.retrieval.batches import Encode, encode_batches, length_sorted_batches, require_evaluation_mode
from megatron_retrieval.types import TokenBatch
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.progress import progress_bar

log = get_logger("embed")


class TokenizedPassages(Protocol):
    """Passages by row, as an `EvidenceStore` or an `EvidenceSample` has them."""

    def __len__(self) -> int: ...

    def tokens(self, rows: NDArray[np.int64], seq_length: int, passage_format: PassageFormat) -> TokenBatch: ...


class TokenizedEvidence(TokenizedPassages, Protocol):
    """Passages with a name, as an `EvidenceStore` has it."""

    @property
    def fingerprint(self) -> str: ...


class _ShardCut(Protocol):
    """Says which rows a shard holds."""

    def rows(self, shard: int) -> range: ...


def embed_evidence(
    evidence: TokenizedEvidence,
    encode: Encode,
    output_dir: str | Path,
    topology: ProcessTopology,
    *,
    encoder_fingerprint: str,
    text_format: TextFormatConfig,
    embedding_dtype: StorageDtype = "float16",
    micro_batch_size: int = 128,
    rows_per_shard: int | None = None,
) -> EmbeddingStore:
    """Encode every passage once and store the vectors; a collective over all ranks.

    The copies of the model (data-parallel ranks) take shards in turn; unfinished shards of an earlier attempt are
    continued with. Batches are cut within a shard, so the bytes do not depend on the number of copies.

    Args:
        encode: [B, T] tokens to [B, D] vectors; of a model in evaluation mode.
        encoder_fingerprint: names the weights and the text layout that `encode` stands for.
        micro_batch_size: passages encoded at once by each copy.
        rows_per_shard: passages per file; default: chosen from the size of the evidence.

    Raises:
        MismatchError: `output_dir` holds embeddings of another evidence or encoder, or of another type.
    """
    require_evaluation_mode(encode)
    identity = StoreIdentity(evidence.fingerprint, encoder_fingerprint, len(evidence), embedding_dtype)
    writer = EmbeddingWriter(output_dir, identity, rows_per_shard)
    # What rank 0 sees decides: files of other ranks may appear while this is read.
    unfinished = gather_objects([] if writer.is_finished else writer.unfinished_shards(), topology.world_group)[0]
    finished = gather_objects(writer.is_finished, topology.world_group)[0]
    if finished:
        log.info("%s is complete already", output_dir)
        return EmbeddingStore(output_dir)
    mine = unfinished[topology.dp_rank :: topology.dp_size]
    _log_start(writer, unfinished, len(evidence))
    for shard, vectors in _encode_shards(evidence, encode, writer, mine, topology, text_format, micro_batch_size):
        if topology.tp_rank == 0:
            writer.write(shard, vectors)
    topology.barrier()
    if topology.is_main:
        writer.finish()
    topology.barrier()
    return EmbeddingStore(output_dir)


def embed_part(
    evidence: TokenizedEvidence,
    encode: Encode,
    output_dir: str | Path,
    topology: ProcessTopology,
    *,
    worker: int,
    num_workers: int,
    encoder_fingerprint: str,
    text_format: TextFormatConfig,
    embedding_dtype: StorageDtype = "float16",
    micro_batch_size: int = 128,
    is_wanted: Callable[[], bool] = lambda: True,
) -> bool:
    """`embed_evidence` by processes that know each other by their files alone: this one encodes the shards
    `worker`, `worker + num_workers`, ..., and the first of them seals the folder once no shard is missing.

    Args:
        topology: of this process alone.
        worker: number of this process, from 0.
        is_wanted: asked after every shard; the rest is left where it says no.

    Returns:
        True if the embeddings are finished; where shards of others are missing, the first worker is to call again.

    Raises:
        MismatchError: `output_dir` holds embeddings of another evidence or encoder, or of another type.
    """
    require_evaluation_mode(encode)
    identity = StoreIdentity(evidence.fingerprint, encoder_fingerprint, len(evidence), embedding_dtype)
    writer = EmbeddingWriter(output_dir, identity)
    unfinished = writer.unfinished_shards()
    if writer.is_finished:  # asked last: sealing removes what says that a shard is finished
        return True
    mine = [shard for shard in unfinished if shard % num_workers == worker]
    for shard, vectors in _encode_shards(evidence, encode, writer, mine, topology, text_format, micro_batch_size):
        writer.write(shard, vectors)
        if not is_wanted():
            return False
    if worker == 0 and not writer.unfinished_shards():
        writer.finish()
    return writer.is_finished


def embed_in_memory(
    evidence: TokenizedPassages,
    encode: Encode,
    dimension: int,
    topology: ProcessTopology,
    *,
    text_format: TextFormatConfig,
    embedding_dtype: StorageDtype = "float16",
    micro_batch_size: int = 128,
) -> ShardedIndex:
    """Encode every passage as `embed_evidence` does, but keep the vectors in memory, spread over the ranks, for a
    search with the encoder of the moment; a collective over all ranks.

    Args:
        encode: [B, T] tokens to [B, D] vectors; of a model in evaluation mode.
        dimension: D.
        micro_batch_size: passages encoded at once by each copy.
    """
    require_evaluation_mode(encode)
    writer = MemoryWriter(len(evidence), dimension, embedding_dtype, topology)
    shards = writer.shards
    for shard, vectors in _encode_shards(evidence, encode, writer, shards, topology, text_format, micro_batch_size):
        writer.write(shard, vectors)
    return writer.index()


def _encode_shards(
    evidence: TokenizedPassages,
    encode: Encode,
    cut: _ShardCut,
    shards: list[int],
    topology: ProcessTopology,
    text_format: TextFormatConfig,
    micro_batch_size: int,
) -> Iterator[tuple[int, Tensor]]:
    """Each shard with its vectors [n, D] in the order of its rows; progress is shown."""
    with _progress(sum(len(cut.rows(shard)) for shard in shards), topology) as progress:
        for shard, tokens in _shard_tokens(evidence, text_format, cut, shards):
            batches = length_sorted_batches(tokens.lengths, micro_batch_size)
            vectors = torch.cat([_encode_one(tokens, batch, encode, topology, progress) for batch in batches])
            restored = torch.empty_like(vectors)
            restored[torch.cat(batches)] = vectors
            yield shard, restored


def _encode_one(tokens: TokenBatch, batch: Tensor, encode: Encode, topology: ProcessTopology, progress: tqdm) -> Tensor:
    vectors = encode_batches(tokens, [batch], encode, topology.device)
    progress.update(len(batch))
    return vectors


def _shard_tokens(
    evidence: TokenizedPassages, text_format: TextFormatConfig, cut: _ShardCut, shards: list[int]
) -> Iterator[tuple[int, TokenBatch]]:
    """Each shard with its tokens, read in the background while the one before is encoded."""

    def read(shard: int) -> TokenBatch:
        rows = np.asarray(cut.rows(shard), dtype=np.int64)
        return evidence.tokens(rows, text_format.retriever_seq_length, text_format.passage_format)

    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(read, shard) for shard in shards[:1]]
        for number, shard in enumerate(shards):
            tokens = pending.pop().result()
            pending += [pool.submit(read, after) for after in shards[number + 1 : number + 2]]
            yield shard, tokens


def _log_start(writer: EmbeddingWriter, unfinished: list[int], num_passages: int) -> None:
    left = sum(len(writer.rows(shard)) for shard in unfinished)
    if left < num_passages:
        log.info("continuing: %s of %s passages are embedded already", f"{num_passages - left:,}", f"{num_passages:,}")


def _progress(total: int, topology: ProcessTopology) -> tqdm:
    share = f" (rank 0 of {topology.dp_size} copies)" if topology.dp_size > 1 else ""
    return progress_bar(f"embedding{share}", "passages", total, visible=topology.is_main)
