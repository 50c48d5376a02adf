"""Retriever and reader trained together as their user does it, with a reader of either kind: the same on one process
and on two, resumed bit for bit; the parts serve the other programs, and bad input is refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from end_to_end_runs import TINY, train, write_starts
from programs import command, kill_at, losses, refuse, succeed

from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.testing.runs import rewind, saved_weights

RETRIEVE, READ = (("tasks/main.py", "--task", name) for name in ("retriever-evaluate", "qa-evaluate"))
STEPS, SHORT = 60, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, starting points, and a run of each kind: extractive the longer one, with held-out questions."""
    folder = write_starts(tmp_path_factory.mktemp("end_to_end"))
    held_out = ("--valid-data", folder / "biencoder.json", "--eval-interval", STEPS)
    succeed(train(folder, "extractive", "run-extractive", STEPS, *held_out))
    succeed(train(folder, "fusion", "run-fusion", SHORT))
    return folder


def _records(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def _loss_of_read_questions(steps: list[dict[str, float]]) -> float:
    """Mean over those that had a passage with an answer; each step asks 4."""
    return sum(4 * step["loss"] for step in steps) / sum(4 - step["num_unread_questions"] for step in steps)


@pytest.mark.parametrize(
    ("reader", "num_processes", "tp_size"),
    [("extractive", 2, 1), ("fusion", 2, 1), ("fusion", 2, 2), ("extractive", 4, 2)],
)
def test_any_layout_has_the_same_losses(
    folder: Path, tmp_path: Path, reader: str, num_processes: int, tp_size: int
) -> None:
    layout = ("--tensor-model-parallel-size", tp_size)
    words = train(folder, reader, tmp_path, SHORT, *layout, num_processes=num_processes)
    succeed(words)
    expected = losses(folder / f"run-{reader}")[:SHORT]
    found = losses(tmp_path)
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-4)


def test_killed_and_resumed_it_goes_on_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    """The index is refreshed before and after."""
    kill_at(20, train(folder, "extractive", tmp_path, STEPS), tmp_path)
    log = succeed(train(folder, "extractive", tmp_path, STEPS, "--load", tmp_path / "checkpoints"))
    taken = re.search(r"(\d+) steps taken", log)
    assert taken is not None
    assert 4 <= int(taken[1]) < STEPS
    assert "other settings" not in log
    assert dict(losses(tmp_path)) == dict(losses(folder / "run-extractive"))


def test_an_extractive_reader_learns_with_its_retriever(folder: Path) -> None:
    records = _records(folder / "run-extractive")
    steps = [record for record in records if "loss" in record]
    assert 0 < sum(step["num_unread_questions"] for step in steps) < 4 * STEPS
    assert _loss_of_read_questions(steps[-10:]) < 0.9 * _loss_of_read_questions(steps[:10])
    held_out = {name for record in records for name in record if name.startswith("valid_")}
    assert {"valid_log_likelihood", "valid_exact_match", "valid_recall@1"} <= held_out
    assert "valid_log_likelihood_alone" not in held_out

    start = saved_weights(resolve_checkpoint(folder / "extractive"))
    trained = saved_weights(resolve_checkpoint(folder / "run-extractive" / "checkpoints" / "reader"))
    changed = {name for name, weight in trained.items() if not torch.equal(weight, start[name])}
    assert {name for name in start if name.startswith("selection.")} == start.keys() - changed


def test_by_emdr2_an_extractive_reader_learns_to_choose_passages(folder: Path, tmp_path: Path) -> None:
    succeed(train(folder, "extractive", tmp_path, 2, "--objective", "emdr2"))
    reader = resolve_checkpoint(tmp_path / "checkpoints" / "reader")
    start, trained = saved_weights(resolve_checkpoint(folder / "extractive")), saved_weights(reader)
    assert not torch.equal(trained["selection.weight"], start["selection.weight"])
    assert EXTRACTIVE_READER.describe(reader).passage_scores.passage_score_use == "none"


def test_the_parts_serve_other_programs(folder: Path, tmp_path: Path) -> None:
    parts = folder / "run-extractive" / "checkpoints"
    assert not any(read_manifest(resolve_checkpoint(parts / name)).parts for name in ("retriever", "reader"))
    evidence = ["--evidence", folder / "evidence"]
    succeed(
        command(
            "tools/embed_evidence.py", *evidence, "--retriever", parts / "retriever", "--output", tmp_path / "embedded"
        )
    )
    asked = [*evidence, "--embeddings", tmp_path / "embedded", "--questions", folder / "biencoder.json"]
    found, read = tmp_path / "found", tmp_path / "read"
    succeed(command(*RETRIEVE, *asked, "--retriever", parts / "retriever", "--topk", 3, "--output-dir", found))
    words = [
        "--retriever",
        parts / "retriever",
        "--reader",
        parts / "reader",
        "--num-passages",
        3,
        "--output-dir",
        read,
    ]
    succeed(command(*READ, *asked, *words))
    retrieved, metrics = (json.loads((place / "metrics.json").read_text()) for place in (found, read))
    assert metrics["recall@3"] == retrieved["recall@3"] > 0
    assert (metrics["reader"], metrics["passage_score_use"]) == ("extractive-reader", "marginal")
    assert metrics["passage_score_divisor"] == pytest.approx(math.sqrt(TINY.encoder.hidden_size))
    predictions = [json.loads(line) for line in (read / "predictions.jsonl").read_text().splitlines()]
    # log-likelihoods, of answers in all passages
    assert all(prediction["score"] <= 1e-6 for prediction in predictions)


def test_frozen_weights_are_shared_with_the_start(folder: Path, tmp_path: Path) -> None:
    """The checkpoints hold what is trained; a run is resumed as if they held everything."""
    frozen = (SHORT, "--freeze-reader")
    succeed(train(folder, "extractive", tmp_path / "whole", *frozen))
    shared = tmp_path / "shared"
    succeed(train(folder, "extractive", shared, *frozen, "--share-frozen-weights", "--keep-last", 2))
    rewind(shared / "checkpoints", 4)
    resumed = ("--share-frozen-weights", "--load", shared / "checkpoints")
    succeed(train(folder, "extractive", shared, *frozen, *resumed, num_processes=2))
    assert dict(losses(shared)) == pytest.approx(dict(losses(tmp_path / "whole")), rel=1e-4)

    whole, part = (resolve_checkpoint(tmp_path / name / "checkpoints" / "reader") for name in ("whole", "shared"))
    assert saved_weights(whole)
    assert not saved_weights(part)
    assert read_manifest(part).fingerprint == read_manifest(whole).fingerprint


BAD_INPUT = {
    "an objective of readers that write": (
        ("extractive", "--objective", "joint-topk"),
        "--objective joint-topk is not for the extractive-reader",
    ),
    "a retriever as reader": (("retriever",), "holds a dual-encoder, where a extractive-reader or fusion-reader or"),
    "too long": (
        ("extractive", "--reader-seq-length", 64),
        "64 exceeds the encoder's 32 positions",
    ),
    "another objective than the checkpoint's": (
        ("fusion", "--objective", "rag-token", "--load", "run-fusion/checkpoints"),
        "--objective",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(folder: Path, tmp_path: Path, case: str) -> None:
    (reader, *words), message = BAD_INPUT[case]
    words = [folder / word if "/" in str(word) else word for word in words]
    refuse(train(folder, str(reader), tmp_path / "out", STEPS, *words), message)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_plain_language_model_is_read_as_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    """Its checkpoint says nothing of prompts and of scores."""
    words = (*READ, "--reader", folder / "causal", "--questions", folder / "reading.json", "--max-answer-length", 4)
    words = (*words, "--num-passages", 2, "--max-questions", 4, "--answer-from", "sequence", "--num-examples", 0)
    prompt = ("--question-seq-length", 16, "--reader-seq-length", 120, "--prompt-instruction", "Say it.")
    outputs = {}
    for name, further in (("plain", ()), ("asked", (*prompt, "--temperature", "0.05"))):
        succeed(command(*words, *further, "--output-dir", tmp_path / name))
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        lines = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        outputs[name] = metrics, [json.loads(line)["score"] for line in lines]
    assert outputs["plain"][0]["passage_score_divisor"] == 1
    asked = {"passage_score_divisor": 0.05, "reader_seq_length": 120, "prompt_instruction": "Say it."}
    assert {name: outputs["asked"][0][name] for name in asked} == asked
    assert outputs["plain"][1] != outputs["asked"][1]
    refuse(command(*words, "--title-prefix", "title:", "--output-dir", tmp_path / "none"), "--title-prefix: the reader")
