"""Recall while a retriever is fine-tuned, as its user runs it, is that of embedding and evaluating the checkpoint."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import programs
import pytest

from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.testing.tiny import write_tiny_evidence

FINETUNE = (
    "tasks/main.py --task retriever-finetune --num-layers 1 --hidden-size 32 --num-attention-heads 4 "
    "--max-position-embeddings 32 --init-method-std 0.2 --retriever-seq-length 16 --query-seq-length 16 "
    "--pooling mean --biencoder-shared-query-context-model --no-retriever-score-scaling --no-tensorboard "
    "--global-batch-size 8 --lr 3e-3 --train-iters 40 --eval-interval 20 --eval-topk 1 5 20 --device cpu"
).split()


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    return programs.run(programs.command(*words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_evidence(folder)
    return folder


def _finetune(folder: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    data = ["--train-data", folder / "biencoder.json", "--vocab-file", folder / "vocab.txt"]
    return _run(*FINETUNE, *data, "--eval-questions", folder / "biencoder.json", *flags)


def test_recall_rises_and_is_that_of_the_checkpoint(folder: Path) -> None:
    evidence, checkpoint, run = folder / "evidence", folder / "checkpoints", folder / "run"
    places = ("--eval-evidence", evidence, "--output-dir", run, "--save", checkpoint)
    trained = _finetune(folder, *places, "--best-metric", "recall@5")
    assert trained.returncode == 0, trained.stderr
    assert "recall after 0, 22 questions, 22 gold questions, 1,122 passages: valid_recall@1 " in trained.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = {line["iteration"]: line["valid_recall@5"] for line in lines if "valid_recall@5" in line}
    assert list(curve) == [0, 20, 40]
    assert curve[40] > curve[0] + 0.2
    best = max((20, 40), key=lambda iteration: curve[iteration])
    assert resolve_checkpoint(checkpoint / "best").name == f"iter_{best:07d}"
    places = ("--evidence", evidence, "--retriever", checkpoint, "--output", folder / "vectors")
    embedded = _run("tools/embed_evidence.py", *places, "--fp32")
    assert embedded.returncode == 0, embedded.stderr
    evaluated = _run(
        *("tasks/main.py", "--task", "retriever-evaluate", "--evidence", evidence, "--embeddings", folder / "vectors"),
        *("--retriever", checkpoint, "--questions", folder / "biencoder.json", "--topk", "1", "5", "20"),
        *("--output-dir", folder / "evaluated"),
    )
    assert evaluated.returncode == 0, evaluated.stderr
    during, after = (json.loads((folder / name / "metrics.json").read_text()) for name in ("run", "evaluated"))
    names = [f"{kind}recall@{k}{end}" for kind in ("", "gold_") for k in (1, 5, 20) for end in ("", "_ci95")]
    assert {name: during[f"valid_{name}"] for name in names} == {name: after[name] for name in names}
    assert during["valid_average_rank"] == after["average_rank"]
    assert during["recall_num_passages"] == after["num_passages"]


def test_evidence_of_another_vocabulary_is_refused_before_training(folder: Path, tmp_path: Path) -> None:
    vocabulary = (folder / "vocab.txt").read_text() + "another\n"
    (tmp_path / "vocab.txt").write_text(vocabulary)
    flags = ["--eval-evidence", folder / "evidence", "--vocab-file", tmp_path / "vocab.txt"]
    refused = _finetune(folder, *flags, "--output-dir", tmp_path / "run")
    assert refused.returncode == 1
    assert "was tokenized with vocabulary" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "run").exists()
