"""A fusion reader fine-tuned and evaluated as its user does it: exact match rises, the tasks and layouts agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import command, kill_at, losses, refuse, succeed

from megatron_retrieval.checkpoint.fusion_reader import describe_fusion_reader
from megatron_retrieval.checkpoint.t5 import KIND, sentencepiece_asset, t5_checkpoint_config
from megatron_retrieval.checkpoint.writer import save_checkpoint
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_sentencepiece import NUM_PIECES, write_sentencepiece

SHAPE = T5Config(num_layers=1, hidden_size=32, num_attention_heads=2, ffn_hidden_size=64, vocab_size=NUM_PIECES + 100)
FINETUNE, EVALUATE = (("tasks/main.py", "--task", name) for name in ("fusion-finetune", "qa-evaluate"))
CITIES = ("Paris", "Rome", "Italy", "Denmark")
LAYOUT = ("--reader-seq-length", 60, "--question-seq-length", 24)


def _save(topology: ProcessTopology, folder: str, model_file: str) -> None:
    save_checkpoint(
        folder,
        T5(SHAPE, topology, seed=7),
        topology,
        kind=KIND,
        config=t5_checkpoint_config(SHAPE),
        assets=sentencepiece_asset(model_file),
    )


def _finetune(folder: Path, run: str, *words: object) -> list[str]:
    """Steps enough to know the answers by heart."""
    data = folder / "reading.json"
    settings = ["--pretrained-checkpoint", folder / "t5", "--train-data", data, "--output-dir", folder / run]
    settings += ["--save", folder / run / "checkpoints", "--no-tensorboard", *LAYOUT, "--global-batch-size", 4]
    settings += ["--lr", 1e-2, "--lr-decay-style", "constant", "--micro-batch-size", 4, "--train-iters", 40]
    return command(*FINETUNE, *settings, *words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with two passages each, a random T5 to start from, and a reader trained on them."""
    folder = tmp_path_factory.mktemp("fusion")
    records = [
        {
            "question": f"where is the {thing}?",
            "answers": [city],
            "ctxs": [{"title": thing, "text": f"the {thing} stands in {other}."} for other in (city, "Denmark")],
        }
        for thing, city in zip(("tower", "play", "river", "prince"), CITIES, strict=True)
    ]
    (folder / "reading.json").write_text(json.dumps(records))
    run_on_ranks(_save, 1, str(folder / "t5"), str(write_sentencepiece(folder / "tiny.model")))
    valid = ("--valid-data", folder / "reading.json", "--eval-interval", 20)
    log = succeed(_finetune(folder, "run", *valid, "--hidden-dropout", 0, "--attention-dropout", 0))
    assert "4 questions to learn from" in log
    return folder


def test_exact_match_rises_and_the_task_finds_the_same(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    curve = [line["valid_exact_match"] for line in lines if "valid_exact_match" in line]
    assert len(curve) == 3
    assert (curve[0], curve[-1]) == (0, 1)
    assert describe_fusion_reader(folder / "run" / "checkpoints").layout is not None

    words = ["--load", folder / "run" / "checkpoints", "--questions", folder / "reading.json", "--num-beams", 2]
    words += ["--tensor-model-parallel-size", 2, "--num-passages", 2, "--output-dir", folder / "read"]
    succeed(command(*EVALUATE, *words, num_processes=2))
    metrics = json.loads((folder / "read" / "metrics.json").read_text())
    assert metrics["exact_match"] == curve[-1]
    assert (metrics["reader"], metrics["num_beams"], metrics["max_answer_length"]) == ("fusion-reader", 2, 32)
    assert (metrics["reader_seq_length"], metrics["question_prefix"]) == (60, "question:")
    predictions = [json.loads(line) for line in (folder / "read" / "predictions.jsonl").read_text().splitlines()]
    assert [prediction["prediction"] for prediction in predictions] == list(CITIES)
    assert "<mark>" in (folder / "read" / "examples.html").read_text()


def test_killed_and_resumed_it_goes_on_bit_for_bit(folder: Path) -> None:
    words = ("--train-iters", 300, "--save-interval", 5)  # long enough to be interrupted
    succeed(_finetune(folder, "whole", *words))
    killed = folder / "killed"
    kill_at(8, _finetune(folder, "killed", *words), killed)
    succeed(_finetune(folder, "killed", *words, "--load", killed / "checkpoints"))
    assert dict(losses(killed)) == dict(losses(folder / "whole"))


BAD_INPUT = {
    "no start": ([*FINETUNE, "--train-data", "{data}"], "nothing to start from"),
    "no room": (
        [*FINETUNE, "--train-data", "{data}", "--pretrained-checkpoint", "{t5}", "--reader-seq-length", "40"],
        "--reader-seq-length 40 leaves no room for passages",
    ),
    "limits": (
        [*EVALUATE, "--load", "{t5}", "--questions", "{data}", "--min-answer-length", "40"],
        "--min-answer-length 40",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(folder: Path, tmp_path: Path, case: str) -> None:
    words, message = BAD_INPUT[case]
    places = {"data": folder / "reading.json", "t5": folder / "t5"}
    refuse(command(*(word.format(**places) for word in words), "--output-dir", tmp_path / "out"), message)
