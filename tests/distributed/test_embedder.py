"""Embedding the evidence: the same bytes at any number of ranks, continued after a stop."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import MismatchError, StoppedError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore, StoreIdentity
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.embedder import embed_evidence
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.types.tokens import WIDTH_STEP, TokenBatch

NUM_ROWS = 23
FORMAT = TextFormatConfig(retriever_seq_length=9)


class _Evidence:
    """Row r has tokens r, r, ... of a length that varies."""

    fingerprint = "evidence"

    def __len__(self) -> int:
        return NUM_ROWS

    def tokens(self, rows: NDArray[np.int64], text_format: TextFormatConfig) -> TokenBatch:
        assert text_format is FORMAT
        numbers, seq_length = torch.from_numpy(rows), text_format.retriever_seq_length
        return TokenBatch(numbers[:, None].repeat(1, seq_length), 3 + numbers * 5 % (seq_length - 2))


class _KilledError(Exception):
    pass


class _Encoder(torch.nn.Module):
    def __init__(self, batches_to_live: int = 1000) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.num_encoded, self._batches_left = 0, batches_to_live

    def encode_passages(self, batch: TokenBatch) -> torch.Tensor:
        if not self._batches_left:
            raise _KilledError
        self._batches_left -= 1
        assert not torch.is_grad_enabled()
        assert 0 <= batch.ids.size(1) - batch.lengths.max() < WIDTH_STEP  # no more padding than a step
        self.num_encoded += len(batch)
        return torch.stack([batch.ids[:, 0], batch.lengths, torch.full_like(batch.lengths, len(batch))], 1) * self.scale


def _embed(topology: ProcessTopology, directory: str, encoder_fingerprint: str = "encoder") -> int:
    encoder = _Encoder().eval()
    job = EmbeddingJob(
        evidence=_Evidence(),
        encode=encoder.encode_passages,
        text_format=FORMAT,
        encoder_fingerprint=encoder_fingerprint,
        embedding_dtype="float32",
        micro_batch_size=3,
    )
    embed_evidence(job, directory, topology, rows_per_shard=5)
    return encoder.num_encoded


@pytest.mark.parametrize(("num_ranks", "tensor_parallel"), [(1, 1), (2, 1), (2, 2)])
def test_any_ranks_write_the_same_bytes(tmp_path: Path, num_ranks: int, tensor_parallel: int) -> None:
    counts = run_on_ranks(_embed, num_ranks, str(tmp_path), tensor_model_parallel_size=tensor_parallel)
    assert counts == {(1, 1): [23], (2, 1): [13, 10], (2, 2): [23, 23]}[num_ranks, tensor_parallel]
    store = EmbeddingStore(tmp_path)
    assert store.manifest.identity.precision == "float32"
    vectors, rows = store.vectors(0, NUM_ROWS), torch.arange(NUM_ROWS)
    assert torch.equal(vectors[:, 0], rows * 2.0)
    assert torch.equal(vectors[:, 1], (3 + rows * 5 % 7) * 2.0)
    # batches of three are cut within shards of five, whatever the ranks
    assert vectors[:, 2].long().bincount().tolist() == [0, 0, 0, 0, 8, 0, 15]


def _embed_twice(topology: ProcessTopology, directory: str) -> list[object]:
    """Finish, lose two shards' worth of work, and start again; then again with nothing to do; then wrongly."""
    _embed(topology, directory)
    folder = Path(directory)
    topology.barrier()
    if topology.is_main:
        store = EmbeddingStore(folder)
        vectors = store.vectors(0, NUM_ROWS).clone()
        (folder / "manifest.json").unlink()
        writer = EmbeddingWriter(folder, StoreIdentity("evidence", "encoder", NUM_ROWS, "float32", "float32"), 5)
        for shard in (0, 3, 4):
            rows = writer.rows(shard)
            writer.write(shard, vectors[rows.start : rows.stop])
    topology.barrier()
    again, nothing = _embed(topology, directory), _embed(topology, directory)
    try:
        _embed(topology, directory, "another encoder")
    except MismatchError as error:
        return [again, nothing, str(error)]
    return [again, nothing, ""]


def test_restart_encodes_only_what_is_missing(tmp_path: Path) -> None:
    ranks = run_on_ranks(_embed_twice, 2, str(tmp_path))
    assert [rank[:2] for rank in ranks] == [[5, 0], [5, 0]]
    assert all("encoder" in rank[2] and "another encoder" in rank[2] for rank in ranks)
    assert torch.equal(EmbeddingStore(tmp_path).vectors(0, NUM_ROWS)[:, 0], torch.arange(NUM_ROWS) * 2.0)


def _embed_until_killed(topology: ProcessTopology, directory: str, batches: int) -> int:
    """Stop before the batch after so many, then start again; how many passages the second start encodes."""
    encode = _Encoder(batches).eval().encode_passages
    job = EmbeddingJob(
        evidence=_Evidence(),
        encode=encode,
        text_format=FORMAT,
        encoder_fingerprint="encoder",
        embedding_dtype="float32",
        micro_batch_size=3,
    )
    with contextlib.suppress(_KilledError):
        embed_evidence(job, directory, topology, rows_per_shard=5)
    return _embed(topology, directory)


@pytest.mark.parametrize("batches", [1, 2, 3, 8])
def test_killed_embedding_repeats_no_finished_batch(tmp_path: Path, batches: int) -> None:
    sizes = [3, 2, 3, 2, 3, 2, 3, 2, 3]  # shards of five rows, the last of three, in batches of three
    (num_encoded,) = run_on_ranks(_embed_until_killed, 1, str(tmp_path), batches)
    assert num_encoded == sum(sizes[batches:])
    vectors, rows = EmbeddingStore(tmp_path).vectors(0, NUM_ROWS), torch.arange(NUM_ROWS)
    assert torch.equal(vectors[:, 0], rows * 2.0)
    assert vectors[:, 2].long().bincount().tolist() == [0, 0, 0, 0, 8, 0, 15]


def _embed_until_one_rank_has_enough(topology: ProcessTopology, directory: str) -> str:
    job = EmbeddingJob(evidence=_Evidence(), encode=_Encoder().eval().encode_passages, text_format=FORMAT)
    try:
        embed_evidence(job, directory, topology, rows_per_shard=5, is_wanted=lambda: topology.rank == 0)
    except StoppedError as error:
        return str(error)
    return ""


def test_a_stop_of_one_rank_stops_its_neighbours_after_the_same_shard(tmp_path: Path) -> None:
    ranks = run_on_ranks(_embed_until_one_rank_has_enough, 2, str(tmp_path), tensor_model_parallel_size=2)
    assert all("the same command continues" in said for said in ranks)
    assert [path.name for path in tmp_path.glob("shard-*.bin")] == ["shard-00000.bin"]


def _embed_in_training_mode(topology: ProcessTopology, directory: str) -> str:
    try:
        job = EmbeddingJob(
            evidence=_Evidence(),
            encode=_Encoder().encode_passages,
            text_format=FORMAT,
            encoder_fingerprint="",
        )
        embed_evidence(job, directory, topology)
    except ValueError as error:
        return str(error)
    return ""


def test_model_in_training_mode_is_refused(tmp_path: Path) -> None:
    assert "training mode" in run_on_ranks(_embed_in_training_mode, 1, str(tmp_path))[0]
    assert not list(tmp_path.iterdir())
