"""A reader fine-tuned and evaluated as its user does it: exact match rises, reports remain, bad input is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import command, losses, refuse, succeed

from megatron_retrieval.checkpoint.kinds.masked_lm import MASKED_LM
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.runs import rewind
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import write_tiny_reading
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

BERT = BertConfig(
    num_layers=1, hidden_size=16, num_attention_heads=2, max_position_embeddings=40, vocab_size=39, init_method_std=0.1
)
RETRIEVER, FINETUNE, EVALUATE = (
    ("tasks/main.py", "--task", name) for name in ("retriever-finetune", "extractive-finetune", "qa-evaluate")
)

LONG = ("--reader-seq-length", "64", "--question-seq-length", "32")


def _save(topology: ProcessTopology, folder: str, vocab: str) -> None:
    model = MaskedLanguageModel(BERT, topology, seed=7)
    MASKED_LM.save(folder, model, topology, BERT, WordPieceTokenizer(vocab))


def _finetune(folder: Path, run: str, *words: object) -> list[str]:
    output = folder / run
    settings = ["--pretrained-checkpoint", folder / "bert", "--train-data", folder / "reading.json"]
    settings += ["--output-dir", output, "--save", output / "checkpoints", "--no-tensorboard"]
    settings += ["--global-batch-size", 8, "--micro-batch-size", 8, "--num-train-passages", 4]
    return command(*FINETUNE, *settings, "--lr", 3e-3, "--lr-decay-style", "constant", *words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, an encoder to start from, and a reader trained on it for a few steps."""
    folder = tmp_path_factory.mktemp("reading")
    data, vocab = write_tiny_reading(folder)
    run_on_ranks(_save, 1, str(folder / "bert"), str(vocab))
    valid = ("--valid-data", data, "--eval-interval", 10, "--train-iters", 30)
    log = succeed(_finetune(folder, "run", *valid, "--hidden-dropout", 0, "--attention-dropout", 0))
    assert "the masked-lm's encoder is taken; the heads of the extractive-reader are new" in log
    assert "24 questions to learn from" in log
    return folder


def test_exact_match_rises_and_the_task_finds_the_same(folder: Path) -> None:
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    curve = [line["valid_exact_match"] for line in lines if "valid_exact_match" in line]
    assert len(curve) == 4
    assert curve[0] < 0.3
    assert curve[-1] > 0.9

    records = json.loads((folder / "reading.json").read_text())
    wanting = [
        {**records[0], "answers": []},
        {**records[1], "ctxs": []},
        {**records[2], "answers": ["", "the box " * 6]},
    ]
    (folder / "more.json").write_text(json.dumps([*records, *wanting]))
    words = ["--reader", folder / "run" / "checkpoints", "--questions", folder / "more.json", "--micro-batch-size", 16]
    log = succeed(command(*EVALUATE, *words, "--output-dir", folder / "read", "--num-examples", 5, num_processes=2))
    assert "1 questions without answers" in log
    assert "1 questions without passages" in log
    assert "1 blank answers" in log
    assert "1 long answers" in log
    metrics = json.loads((folder / "read" / "metrics.json").read_text())
    assert metrics["num_questions"] == 27
    assert metrics["exact_match"] == pytest.approx(curve[-1] * 24 / 27)
    assert metrics["exact_match_ci95"][0] <= metrics["exact_match"] <= metrics["f1"]
    assert (metrics["num_questions_without_answers"], metrics["num_unanswered_questions"]) == (1, 1)
    assert (metrics["num_questions_without_passages"], metrics["num_blank_answers"]) == (1, 1)
    assert metrics["num_long_answers"] == 1
    assert (metrics["num_passages"], metrics["reader_seq_length"], metrics["max_answer_length"]) == (20, 40, 10)
    predictions = [json.loads(line) for line in (folder / "read" / "predictions.jsonl").read_text().splitlines()]
    assert [prediction["question"] for prediction in predictions] == [
        record["question"] for record in [*records, *wanting]
    ]
    assert sum(prediction["exact_match"] for prediction in predictions) == pytest.approx(metrics["exact_match"] * 27)
    page = (folder / "read" / "examples.html").read_text()
    assert page.count("<details") == 5
    assert "<mark>" in page
    assert (folder / "read" / "run_record.json").exists()


def test_resumed_it_goes_on_bit_for_bit(folder: Path) -> None:
    words = ("--train-iters", 12, "--save-interval", 5, "--log-interval", 1)
    succeed(_finetune(folder, "whole", *words))
    rewind(folder / "whole" / "checkpoints", 5)
    log = succeed(_finetune(folder, "resumed", *words, "--load", folder / "whole" / "checkpoints"))
    assert "other settings" not in log
    assert losses(folder / "resumed") == losses(folder / "whole")[5:]
    assert len(losses(folder / "resumed")) == 7


BAD_INPUT = {
    "no start": ([*FINETUNE, "--train-data", "{data}"], "nothing to start from"),
    "a reader as retriever": (
        [*RETRIEVER, "--train-data", "{data}", "--pretrained-checkpoint", "{run}/checkpoints"],
        "holds a extractive-reader, where a dual-encoder or masked-lm or causal-lm is needed",
    ),
    "closed book": (
        [*EVALUATE, "--reader", "{run}/checkpoints", "--questions", "{data}", "--closed-book"],
        "--closed-book",
    ),
    "no reader": ([*EVALUATE, "--reader", "{bert}", "--questions", "{data}"], "holds a masked-lm, where a"),
    "too long": (
        [*FINETUNE, *LONG, "--train-data", "{data}", "--pretrained-checkpoint", "{bert}"],
        "--reader-seq-length 64 exceeds the encoder's 40 positions",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(folder: Path, tmp_path: Path, case: str) -> None:
    words, message = BAD_INPUT[case]
    places = {"data": folder / "reading.json", "run": folder / "run", "bert": folder / "bert"}
    refuse(command(*(word.format(**places) for word in words), "--output-dir", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()
