"""Retriever and reader trained together as their user does it, with a reader of either kind: the same on one process
and on two, resumed bit for bit; the parts serve the other programs, and bad input is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import command, kill_at, losses, refuse, succeed

from megatron_retrieval.checkpoint.kinds import dual_encoder, extractive_reader, fusion_reader
from megatron_retrieval.checkpoint.kinds.architectures import BERT_ARCHITECTURE, KEY
from megatron_retrieval.checkpoint.kinds.description import LOWER_CASE_KEY, VOCAB_NAME
from megatron_retrieval.checkpoint.kinds.dual_encoder import checkpoint_config, text_format_within
from megatron_retrieval.checkpoint.kinds.extractive_reader import extractive_reader_checkpoint_config
from megatron_retrieval.checkpoint.store.manifest import resolve_checkpoint
from megatron_retrieval.checkpoint.store.writer import save_checkpoint
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.runs import saved_weights
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_evidence

RETRIEVE, READ, TRAIN = (
    ("tasks/main.py", "--task", name) for name in ("retriever-evaluate", "qa-evaluate", "end-to-end-finetune")
)
TINY = tiny_dual_encoder_config()
READER = {**dataclasses.asdict(TINY.bert), "max_position_embeddings": 32}
LENGTHS: dict[str, Any] = {"question_seq_length": 6, "reader_seq_length": 32}
STEPS, SHORT = 60, 8
SETTINGS = (
    f"--global-batch-size 4 --micro-batch-size 2 --num-passages 8 --lr 1e-3 --lr-decay-style constant --seed 5 "
    f"--lr-warmup-fraction 0 --max-answer-length 4 --train-iters {STEPS} --index-refresh-interval 3 --no-tensorboard "
    f"--embedding-dtype float32 --log-interval 1 --save-interval 4"
).split()


def _save_starts(topology: ProcessTopology, folder: str) -> None:
    """A random retriever, and a random reader of each kind."""
    root = Path(folder)
    text_format, extractive, fusion = (
        text_format_within(TextFormatConfig(), TINY.bert),
        ExtractiveFormatConfig(**LENGTHS),
        FusionFormatConfig(**LENGTHS, question_prefix="where", title_prefix="title", passage_prefix="of"),
    )
    bert, seq2seq = BertConfig(**READER), BertSeq2SeqConfig(**READER, decoder_num_layers=1)
    fusion_config = {**to_flat_dict(seq2seq), **to_flat_dict(fusion), LOWER_CASE_KEY: True, KEY: BERT_ARCHITECTURE.name}
    models = {
        "retriever": (
            dual_encoder.KIND,
            DualEncoder(TINY, topology, seed=1),
            checkpoint_config(TINY, text_format, True),
        ),
        "extractive": (
            extractive_reader.KIND,
            ExtractiveReader(bert, topology, seed=2),
            extractive_reader_checkpoint_config(bert, extractive, True),
        ),
        "fusion": (
            fusion_reader.KIND,
            BertSeq2Seq(seq2seq, topology, start_id=2, end_id=3, seed=2),
            fusion_config,
        ),
    }
    assets = {VOCAB_NAME: (root / "vocab.txt").read_bytes()}
    for name, (kind, model, config) in models.items():
        save_checkpoint(root / name, model, topology, kind=kind, config=config, assets=assets)


def _train(folder: Path, reader: str, run: str, *words: object, num_processes: int = 1) -> list[str]:
    output = folder / run
    starts = ["--retriever", folder / "retriever", "--reader", folder / reader, "--evidence", folder / "evidence"]
    places = ["--train-data", folder / "biencoder.json", "--output-dir", output, "--save", output / "checkpoints"]
    return command(*TRAIN, *starts, *places, *SETTINGS, *words, num_processes=num_processes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, starting points, and a run of each kind: extractive the longer one, with held-out questions."""
    folder = tmp_path_factory.mktemp("end_to_end")
    write_tiny_evidence(folder, num_distractors=0)
    run_on_ranks(_save_starts, 1, str(folder))
    held_out = ("--valid-data", folder / "biencoder.json", "--eval-interval", STEPS)
    succeed(_train(folder, "extractive", "run-extractive", *held_out))
    succeed(_train(folder, "fusion", "run-fusion", "--train-iters", SHORT))
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
    words = _train(folder, reader, str(tmp_path), "--train-iters", SHORT, *layout, num_processes=num_processes)
    succeed(words)
    expected = losses(folder / f"run-{reader}")[:SHORT]
    found = losses(tmp_path)
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-4)


def test_killed_and_resumed_it_goes_on_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    """The index is refreshed before and after."""
    kill_at(20, _train(folder, "extractive", str(tmp_path)), tmp_path)
    log = succeed(_train(folder, "extractive", str(tmp_path), "--load", tmp_path / "checkpoints"))
    taken = re.search(r"(\d+) steps taken", log)
    assert taken is not None
    assert 4 <= int(taken[1]) < STEPS
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


def test_the_parts_serve_other_programs(folder: Path, tmp_path: Path) -> None:
    parts = folder / "run-extractive" / "checkpoints"
    evidence = ["--evidence", folder / "evidence"]
    succeed(
        command("tools/embed_evidence.py", *evidence, "--load", parts / "retriever", "--output", tmp_path / "embedded")
    )
    asked = [*evidence, "--embeddings", tmp_path / "embedded", "--questions", folder / "biencoder.json"]
    found, read = tmp_path / "found", tmp_path / "read"
    succeed(command(*RETRIEVE, *asked, "--load", parts / "retriever", "--topk", 3, "--output-dir", found))
    words = ["--retriever", parts / "retriever", "--load", parts / "reader", "--num-passages", 3, "--output-dir", read]
    succeed(command(*READ, *asked, *words))
    retrieved, metrics = (json.loads((place / "metrics.json").read_text()) for place in (found, read))
    assert metrics["recall@3"] == retrieved["recall@3"] > 0
    assert (metrics["reader"], metrics["passage_score_use"]) == ("extractive-reader", "marginal")
    assert metrics["passage_score_divisor"] == pytest.approx(math.sqrt(TINY.bert.hidden_size))
    predictions = [json.loads(line) for line in (read / "predictions.jsonl").read_text().splitlines()]
    # log-likelihoods, of answers in all passages
    assert all(prediction["score"] <= 1e-6 for prediction in predictions)


BAD_INPUT = {
    "an objective of readers that write": (
        ("extractive", "--objective", "joint-topk"),
        "--objective joint-topk is for readers that write, and",
    ),
    "a retriever as reader": (("retriever",), "holds a dual-encoder, where a extractive-reader or fusion-reader is"),
    "too long": (
        ("extractive", "--reader-seq-length", 64),
        "64 exceeds the encoder's 32 positions",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(folder: Path, tmp_path: Path, case: str) -> None:
    (reader, *words), message = BAD_INPUT[case]
    refuse(_train(folder, str(reader), str(tmp_path / "out"), *words), message)
    assert not (tmp_path / "out" / "checkpoints").exists()
