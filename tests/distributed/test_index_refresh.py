"""The index follows the encoder: every rank changes to the same version after the same step, or none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from refreshed_runs import index_lines, run_refreshed, saving_words, words_of_run

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.embedder import embed_evidence
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.retrieval.index_versions import IndexVersions
from megatron_retrieval.testing.refreshed_run import NUM_COMPARED, TEXT_FORMAT
from megatron_retrieval.testing.runs import curve
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import write_tiny_evidence


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_evidence(tmp_path_factory.mktemp("evidence"))


@pytest.mark.parametrize(("num_ranks", "tensor_parallel"), [(1, 1), (2, 1), (2, 2)], ids=["single", "DP 2", "TP 2"])
def test_in_place_all_ranks_change_at_once(
    tmp_path: Path, evidence: Path, num_ranks: int, tensor_parallel: int
) -> None:
    words = words_of_run(evidence, tmp_path, "--index-refresh-interval", 2)
    ranks = run_on_ranks(run_refreshed, num_ranks, words, tensor_model_parallel_size=tensor_parallel)
    for versions, state, num_changes in ranks:
        assert versions == [0, 0, 2, 2, 4, 4]
        assert (state["current"]["iteration"], state["pending"], num_changes) == (6, None, 3)
    lines = index_lines(tmp_path)
    assert [(line["iteration"], line["index_version"], line["index_staleness_steps"]) for line in lines] == [
        (2, 2, 0), (4, 4, 0), (6, 6, 0)
    ]  # fmt: skip
    # as old as the encoder's weights: half a minute to write them, and half a minute to embed the evidence
    assert curve(tmp_path, "index_staleness_minutes") == [1.0] * 9
    overlaps = [line[f"index_overlap@{NUM_COMPARED}"] for line in lines]
    assert 0 < min(overlaps) <= max(overlaps) < 1
    assert IndexVersions(tmp_path / "index").complete() == [4, 6]


def _embed(topology: ProcessTopology, evidence: str, checkpoint: str, output: str) -> None:
    encoder = DUAL_ENCODER.load(checkpoint, topology)
    job = EmbeddingJob(
        evidence=EvidenceStore(evidence),
        encode=encoder.model.encode_passages,
        text_format=encoder.description.layout,
        encoder_fingerprint=encoder.description.fingerprint,
    )
    embed_evidence(job, output, topology)


def test_a_version_is_what_its_snapshot_embeds(tmp_path: Path, evidence: Path) -> None:
    """Although the model was in training mode, with dropout."""
    run_on_ranks(run_refreshed, 1, words_of_run(evidence, tmp_path, "--index-refresh-interval", 3))
    versions = IndexVersions(tmp_path / "index")
    assert DUAL_ENCODER.describe(versions.snapshot(6)).layout == TEXT_FORMAT
    run_on_ranks(_embed, 1, str(evidence), str(versions.snapshot(6)), str(tmp_path / "again"))
    stores = [EmbeddingStore(folder) for folder in (versions.path(3), versions.path(6), tmp_path / "again")]
    before, last, again = (store.vectors(0, len(store)) for store in stores)
    assert torch.equal(last, again)
    assert stores[1].manifest.identity == stores[2].manifest.identity
    assert not torch.equal(before, last)


def test_training_does_not_notice(tmp_path: Path, evidence: Path) -> None:
    """The step does not learn from what it finds, so that its losses, with dropout, stay the same bit for bit."""
    run_on_ranks(run_refreshed, 1, words_of_run(evidence, tmp_path / "never"))
    run_on_ranks(run_refreshed, 1, words_of_run(evidence, tmp_path / "often", "--index-refresh-interval", 1))
    assert curve(tmp_path / "never") == curve(tmp_path / "often")
    assert index_lines(tmp_path / "never") == []


#: what is done, the versions that the steps search, and the one that is being made at the end
DEEDS: dict[str, tuple[list[tuple[int, str]], list[int], int | None]] = {
    "a version that comes later": ([(4, "make")], [0, 0, 0, 0, 2, 2], 4),
    "truncated": ([(3, "truncate"), (5, "make")], [0, 0, 0, 0, 0, 2], None),
    "of another encoder": ([(3, "foreign"), (5, "make")], [0, 0, 0, 0, 0, 2], None),
    "given up": ([(3, "give up"), (5, "make")], [0, 0, 0, 0, 0, 4], None),
    "request and encoder removed": ([(3, "remove"), (5, "make")], [0, 0, 0, 0, 0, 3], None),
    "useless again and again": ([(2 + n, "truncate") for n in (1, 2, 3)], [0, 0, 0, 0, 0, 0], None),
}


def _run_cases(topology: ProcessTopology, words: dict[str, list[str]]) -> dict[str, list[Any]]:
    return {case: run_refreshed(topology, words[case], deeds) for case, (deeds, _, _) in DEEDS.items()}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_all_ranks_change_to_what_others_made_after_the_same_step(
    tmp_path: Path, evidence: Path, num_ranks: int
) -> None:
    words = {case: words_of_run(evidence, tmp_path / case, "--index-refresh-interval", 2) for case in DEEDS}
    for rank in run_on_ranks(_run_cases, num_ranks, words):
        for case, (_, expected, pending) in DEEDS.items():
            versions, state, _ = rank[case]
            assert versions == expected, case
            assert state["current"]["iteration"] == expected[-1], case
            assert (state["pending"] and state["pending"]["iteration"]) == pending, case
    for case, (_, expected, pending) in DEEDS.items():
        request = IndexVersions(tmp_path / case / "index").requested()
        assert (request and request.iteration) == pending, case
        lines = index_lines(tmp_path / case)
        assert [line["index_version"] for line in lines] == sorted(set(expected) - {0}), case
        for line in lines:
            assert line["index_staleness_steps"] == line["iteration"] - line["index_version"]


@pytest.mark.parametrize("tensor_parallel", [1, 2], ids=["DP 2", "TP 2"])
def test_a_resumed_run_opens_the_version_that_it_had(tmp_path: Path, evidence: Path, tensor_parallel: int) -> None:
    saved = saving_words(tmp_path / "saved", "--index-dir", tmp_path / "index")
    run_on_ranks(run_refreshed, 1, words_of_run(evidence, tmp_path / "first", *saved, "--train-iters", 5))
    manifest = (tmp_path / "index" / "version-0000003" / "manifest.json").stat()
    words = words_of_run(evidence, tmp_path / "second", *saved, "--train-iters", 8)
    ranks = run_on_ranks(run_refreshed, 2, words, tensor_model_parallel_size=tensor_parallel)
    assert [rank[0] for rank in ranks] == [[3, 6, 6]] * 2
    assert (tmp_path / "index" / "version-0000003" / "manifest.json").stat().st_mtime_ns == manifest.st_mtime_ns
    assert [record["iteration"] for record in index_lines(tmp_path / "second")] == [6]
    assert curve(tmp_path / "second", "index_staleness_minutes") == [1.0] * 4, "as if no time had passed"


def test_a_pending_request_is_taken_up_again(tmp_path: Path, evidence: Path) -> None:
    saved = saving_words(tmp_path / "saved", "--index-dir", tmp_path / "index")
    first = run_on_ranks(run_refreshed, 1, words_of_run(evidence, tmp_path / "first", *saved, "--train-iters", 5), [])
    assert (first[0][0], first[0][1]["pending"]["iteration"]) == ([0] * 5, 3)
    (tmp_path / "index" / "request.json").unlink()
    second = run_on_ranks(
        run_refreshed, 2, words_of_run(evidence, tmp_path / "second", *saved, "--train-iters", 8), [(7, "make")]
    )
    assert [rank[0] for rank in second] == [[0, 0, 3]] * 2
    (line,) = index_lines(tmp_path / "second")
    assert (line["iteration"], line["index_version"], line["index_staleness_steps"]) == (7, 3, 4)
