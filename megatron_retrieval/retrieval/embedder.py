"""Embeds the whole evidence over all ranks: to disk, continuing after a stop, or into memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_retrieval.errors import StoppedError
from megatron_retrieval.index.exact.sharded import ShardedIndex
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter
from megatron_retrieval.index.store.memory import MemoryWriter
from megatron_retrieval.parallel.collectives import any_rank, gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.retrieval.encode_batches import require_evaluation_mode
from megatron_retrieval.retrieval.shard_encoding import EmbeddingProgress, ShardEncoder
from megatron_retrieval.utils.late_files import seen_late
from megatron_retrieval.utils.logging import get_logger

log = get_logger("embed")


def embed_evidence(
    job: EmbeddingJob,
    output_dir: str | Path,
    topology: ProcessTopology,
    *,
    rows_per_shard: int | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> EmbeddingStore:
    """Encode every passage once and store the vectors; a collective over all ranks.

    The copies of the model (data-parallel ranks) take shards in turn; an earlier attempt is continued after the last
    batch that each of its copies finished. Batches are cut within a shard, so the bytes do not depend on the number of
    copies.

    Args:
        rows_per_shard: passages per file; default: chosen from the size of the evidence.
        is_wanted: asked after every shard; a copy that is told no waits for the others, and all raise.

    Raises:
        MismatchError: `output_dir` holds embeddings of another evidence or encoder, or in another type.
        StoppedError: it was not wanted to the end.
    """
    require_evaluation_mode(job.encode)
    writer = EmbeddingWriter(output_dir, job.identity, rows_per_shard)
    # What rank 0 sees decides: files of other ranks may appear while this is read.
    unfinished = None if writer.is_finished else writer.unfinished_shards()
    unfinished = gather_objects(unfinished, topology.world_group)[0]
    if unfinished is None:
        log.info("%s is complete already", output_dir)
        if topology.is_main:
            writer.clean_up()  # the process that finished it may have been killed before it could
        return EmbeddingStore(output_dir)
    mine = unfinished[topology.dp_rank :: topology.dp_size]
    _log_start(writer, len(job.evidence))
    encoder = ShardEncoder(job, writer, topology)
    with EmbeddingProgress(
        "embedding", len(job.evidence), is_visible=topology.is_main, num_done=writer.num_rows_written
    ) as progress:
        is_done = encoder.run(mine, progress, is_wanted)
        if any_rank(not is_done, topology.world_group, topology.device):
            raise StoppedError(f"{output_dir}: stopped while the evidence was embedded; the same command continues.")
    if topology.is_main:
        seen_late(writer.finish)
    topology.barrier()
    return seen_late(lambda: EmbeddingStore(output_dir))


def embed_part(
    job: EmbeddingJob,
    output_dir: str | Path,
    topology: ProcessTopology,
    *,
    worker: int,
    num_workers: int,
    is_wanted: Callable[[], bool] = lambda: True,
) -> bool:
    """`embed_evidence` by processes that communicate by files alone: this one encodes the shards
    `worker`, `worker + num_workers`, ..., and the first writes the manifest once no shard is missing.

    Args:
        topology: of this process alone.
        worker: number of this process, from 0.
        is_wanted: asked after every shard; False stops.

    Returns:
        True if the embeddings are finished; where shards of others are missing, the first worker is to call again.

    Raises:
        MismatchError: `output_dir` holds embeddings of another evidence or encoder, or in another type.
    """
    require_evaluation_mode(job.encode)
    writer = EmbeddingWriter(output_dir, job.identity)
    unfinished = writer.unfinished_shards()
    if writer.is_finished:  # asked last: sealing removes what says that a shard is finished
        return True
    mine = [shard for shard in unfinished if shard % num_workers == worker]
    encoder = ShardEncoder(job, writer, topology)
    with EmbeddingProgress("embedding", sum(len(writer.rows(shard)) for shard in mine), is_visible=True) as progress:
        if not encoder.run(mine, progress, is_wanted):
            return False
    if worker == 0 and not writer.unfinished_shards():
        writer.finish()
    return writer.is_finished


def embed_in_memory(job: EmbeddingJob, dimension: int, topology: ProcessTopology) -> ShardedIndex:
    """Encode every passage as `embed_evidence` does, but keep the vectors in memory, spread over the ranks, for a
    search with the encoder as it is now; a collective over all ranks.

    Args:
        dimension: D.
    """
    require_evaluation_mode(job.encode)
    writer = MemoryWriter(len(job.evidence), dimension, job.embedding_dtype, topology)
    encoder = ShardEncoder(job, writer, topology, writes_all=True)
    label = f"embedding (rank 0 of {topology.dp_size} copies)" if topology.dp_size > 1 else "embedding"
    num_rows = sum(len(writer.rows(shard)) for shard in writer.shards)
    with EmbeddingProgress(label, num_rows, is_visible=topology.is_main) as progress:
        encoder.run(writer.shards, progress)
    return writer.index()


def _log_start(writer: EmbeddingWriter, num_passages: int) -> None:
    if num_done := writer.num_rows_written():
        log.info("continuing: %s of %s passages are embedded already", f"{num_done:,}", f"{num_passages:,}")
