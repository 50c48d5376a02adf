"""Processes that embed what is asked for: several of them make one version, and only that which was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.checkpoint.store.writer import save_checkpoint
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import MegatronRetrievalError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh.index_worker import IndexWorkerConfig, fulfil
from megatron_retrieval.retrieval.embedder import embed_evidence, embed_part
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions
from megatron_retrieval.testing.refreshed_run import TEXT_FORMAT
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_evidence


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_evidence(tmp_path_factory.mktemp("evidence"))


def _snapshot(versions: IndexVersions, evidence: EvidenceStore, iteration: int, topology: ProcessTopology) -> str:
    model = DualEncoder(tiny_dual_encoder_config(dropout=0.5), topology, seed=iteration)
    folder = save_checkpoint(
        versions.snapshots,
        model,
        topology,
        kind=DUAL_ENCODER.name,
        config=DUAL_ENCODER.config(model.config, evidence.vocabulary, TEXT_FORMAT),
        assets=evidence.vocabulary.assets(),
        iteration=iteration,
    )
    return read_manifest(folder).fingerprint


def _work(topology: ProcessTopology, folder: str, evidence_folder: str) -> list[object]:
    evidence, versions, said = EvidenceStore(evidence_folder), IndexVersions(folder), list[object]()

    def work(request: IndexRequest, worker: int) -> None:
        config = IndexWorkerConfig(
            index_dir=Path(folder), evidence=Path(evidence_folder), worker=worker, num_workers=2, parent_pid=0
        )
        try:
            fulfil(request, versions, evidence, config, topology)
        except MegatronRetrievalError as error:
            said.append(str(error))
        shards = sorted(path.name for path in versions.path(request.iteration).glob("shard-*.bin"))
        said.append([shards, versions.is_complete(request.iteration)])

    fingerprint = _snapshot(versions, evidence, 7, topology)
    first = IndexRequest(7, fingerprint)
    versions.request(first)
    work(first, 1)
    work(first, 0)

    damaged = versions.path(7) / "shard-00001.bin"
    damaged.write_bytes(b"cut off")
    versions.remove(7)
    again = IndexRequest(7, fingerprint, attempt=2)
    versions.request(again)
    work(first, 1)
    work(again, 1)
    work(again, 0)

    work(IndexRequest(7, "another encoder"), 0)
    work(IndexRequest(8, fingerprint), 0)

    encoder = DUAL_ENCODER.load(versions.snapshot(7), topology)
    job = EmbeddingJob(
        evidence=evidence,
        encode=encoder.model.encode_passages,
        text_format=TEXT_FORMAT,
        encoder_fingerprint=fingerprint,
    )
    embed_evidence(job, versions.folder / "expected", topology)
    said.append(embed_part(job, versions.folder / "first half", topology, worker=0, num_workers=2))
    return said


def test_workers_share_a_version_by_files_alone(tmp_path: Path, evidence: Path) -> None:
    (said,) = run_on_ranks(_work, 1, str(tmp_path), str(evidence))
    all_shards = [f"shard-0000{number}.bin" for number in range(3)]
    half, whole = [[all_shards[1]], False], [all_shards, True]
    assert said[:2] == [half, whole]
    assert said[2] == [[], False], "nobody asks for the first attempt any more"
    assert said[3:5] == [half, whole]
    assert "but another encoder is asked for" in said[5]
    assert "iter_0000008" in said[7]
    assert said[8] == [[], False]
    assert said[9] is False, "the first worker finishes nothing without the second"
    made, expected = EmbeddingStore(IndexVersions(tmp_path).path(7)), EmbeddingStore(tmp_path / "expected")
    assert made.manifest.identity == expected.manifest.identity
    assert torch.equal(made.vectors(0, len(made)), expected.vectors(0, len(expected)))
