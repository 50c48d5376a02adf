"""An approximate index as a user builds and asks it: with all lists and candidates ranked anew, evaluation is exact."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from programs import command, refuse, run, succeed
from tiny_line import write_evidence_and_encoder

DEVICE = ("--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evidence, a random encoder of its vocabulary, embeddings and an index."""
    folder = tmp_path_factory.mktemp("approximate_line")
    _, vocab = write_evidence_and_encoder(folder)
    built = ("--input", folder / "passages.jsonl", "--output", folder / "ev", "--vocab-file", vocab)
    succeed(command("tools/build_evidence.py", *built))
    given = ("--evidence", folder / "ev", "--retriever", folder / "ck", "--output", folder / "embeddings")
    succeed(command("tools/embed_evidence.py", *given, *DEVICE))
    assert "learning from 1,122 vectors" in succeed(command(*_build(folder), "--index-factory", "IVF16,Flat"))
    return folder


def _build(folder: Path) -> list[object]:
    return ["tools/build_index.py", "--embeddings", folder / "embeddings", "--output", folder / "index"]


def _evaluate(folder: Path, name: str, *words: object, num_processes: int = 1) -> dict[str, object]:
    inputs = ["--evidence", folder / "ev", "--embeddings", folder / "embeddings", "--retriever", folder / "ck"]
    asked = ["--questions", folder / "biencoder.json", "--output-dir", folder / name, "--topk", 20, 5]
    job = ["tasks/main.py", "--task", "retriever-evaluate", *inputs, *asked, *DEVICE, *words]
    succeed(command(*job, num_processes=num_processes))
    metrics: dict[str, object] = json.loads((folder / name / "metrics.json").read_text())
    return metrics


def test_evaluation_is_exact_where_everything_is_looked_at(folder: Path) -> None:
    exact = _evaluate(folder, "exact")
    settings = ("--index", folder / "index", "--rerank-candidates", 1122, "--verify-embeddings")
    whole = _evaluate(folder, "whole", *settings, "--nprobe", 16)
    recorded = {"index_factory", "index_checksum", "nprobe", "ef_search", "rerank_candidates"}
    assert whole.keys() - exact.keys() == recorded
    assert {name: value for name, value in whole.items() if name not in recorded} == exact
    assert (folder / "whole" / "run.trec").read_text() == (folder / "exact" / "run.trec").read_text()
    part = _evaluate(folder, "part", *settings, "--nprobe", 1, num_processes=2)
    assert part == _evaluate(folder, "part1", *settings, "--nprobe", 1)
    assert (folder / "part" / "run.trec").read_text() != (folder / "exact" / "run.trec").read_text()


def test_what_cannot_be_is_refused(folder: Path) -> None:
    refuse(command(*_build(folder), "--index-factory", "IVF16,Flat"), "index: exists already")
    refuse(command(*_build(folder)[:-1], folder / "x", "--index-factory", "IVF16,Flut"), "faiss makes no such index")
    assert not list(folder.glob("x*"))


def test_indexes_are_compared(folder: Path) -> None:
    job = ("benchmarks/approximate_indexes.py", "--embeddings", folder / "embeddings", "--retriever", folder / "ck")
    asked = ("--questions", folder / "biencoder.json", "--index-factory", "IVF4,Flat", "HNSW8", "--nprobe", 1, 4)
    result = run(command(*job, *asked, "--topk", 5))
    assert result.returncode == 0, result.stderr
    assert "1,122 x 32, 22 queries" in result.stdout
    assert re.search(r"^IVF4,Flat +nprobe 4 .* 100\.0$", result.stdout, re.MULTILINE)
    random = ("--random-rows", 2000, "--random-clusters", 30, "--random-dimension", 16, "--num-queries", 20)
    result = run(command("benchmarks/approximate_indexes.py", *random, "--index-factory", "IVF8,SQ8", "--nprobe", 8))
    assert result.returncode == 0, result.stderr
    assert "2,000 x 16, 20 queries" in result.stdout
    assert len(re.findall(r"^IVF8,SQ8 +nprobe 8", result.stdout, re.MULTILINE)) == 2
