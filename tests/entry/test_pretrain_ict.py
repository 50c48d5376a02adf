"""ICT pretraining as its user runs it: one process and two, killed and resumed, given bad input."""

from __future__ import annotations

import json
from pathlib import Path

import programs
import pytest
from programs import losses, refuse, succeed

from megatron_retrieval.testing.runs import rewind, saved_weights
from megatron_retrieval.testing.tiny import write_tiny_corpus, write_tiny_dpr

TINY = (
    "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --max-position-embeddings 32 --retriever-seq-length 32 "
    "--query-seq-length 16 --no-tensorboard --log-interval 1 --global-batch-size 8 --lr 1e-3 --save-interval 5 "
    "--valid-fraction 0.1"
).split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


def command(corpus: Path, output: Path, *flags: str, num_processes: int = 1) -> list[str]:
    """The words of a tiny run, under python or torchrun, of the program in the checkout or of the installed one."""
    program = ("-m", "megatron_retrieval", "train", "ict") if num_processes > 1 else ("pretrain_ict.py",)
    job = (*program, *TINY, "--data-path", corpus, "--output-dir", output)
    return programs.command(*job, *flags, num_processes=num_processes)


def test_one_process_and_two(corpus: Path, tmp_path: Path) -> None:
    flags = ["--train-iters", "5", "--hidden-dropout", "0", "--attention-dropout", "0"]
    assert "blocks of" in succeed(command(corpus, tmp_path / "single", *flags))
    flags += ["--tensor-model-parallel-size", "2"]
    succeed(command(corpus, tmp_path / "double", *flags, num_processes=2))
    expected = [loss for _, loss in losses(tmp_path / "single")]
    assert len(expected) == 5
    assert [loss for _, loss in losses(tmp_path / "double")] == pytest.approx(expected, rel=1e-4)
    metrics = json.loads((tmp_path / "single" / "metrics.json").read_text())
    assert {"valid_loss", "valid_accuracy", "valid_accuracy@5", "valid_accuracy@20"} <= metrics.keys()


def test_resumed_run_equals_the_uninterrupted_one(corpus: Path, tmp_path: Path) -> None:
    iterations = ["--train-iters", "12", "--save-interval", "5"]
    succeed(command(corpus, tmp_path / "whole", *iterations, "--save", f"{tmp_path}/a"))
    words = command(corpus, tmp_path / "resumed", *iterations, "--save", f"{tmp_path}/b", "--load", f"{tmp_path}/a")
    rewind(tmp_path / "a", 5)
    assert "resumed" in succeed(words)
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")[5:]
    first, second = (saved_weights(tmp_path / name / "iter_0000012") for name in "ab")
    assert all(first[name].equal(second[name]) for name in first | second)
    refuse(
        [*words, "--query-in-block-prob", "0.5", "--valid-fraction", "0.5"],
        "learned from something else: number of blocks",
    )


def _without_second_sentence(folder: Path, corpus: Path) -> list[str]:
    return ["--data-path", str(write_tiny_corpus(folder, num_sentences=1))]


def _empty(folder: Path, corpus: Path) -> list[str]:
    (folder / "empty").mkdir()
    return ["--data-path", str(folder / "empty")]


def _all_held_out(folder: Path, corpus: Path) -> list[str]:
    return ["--valid-fraction", "0.9999999"]


def _other_vocabulary(folder: Path, corpus: Path) -> list[str]:
    """A checkpoint trained on questions, whose vocabulary is another one than the corpus's."""
    data, vocab = write_tiny_dpr(folder)
    job = ("tasks/main.py", "--task", "retriever-finetune", *TINY[: TINY.index("--valid-fraction")])
    source = ("--train-data", data, "--vocab-file", vocab, "--train-iters", "1", "--save", f"{folder}/other")
    succeed(programs.command(*job, *source, "--output-dir", f"{folder}/other-run"))
    return ["--pretrained-checkpoint", f"{folder}/other"]


BAD_INPUT = {
    "empty folder": (_empty, "no corpus here"),
    "no second sentence": (_without_second_sentence, "has a second sentence. Give longer documents"),
    "everything held out": (_all_held_out, "no document is left to train on. Lower --valid-fraction"),
    "other vocabulary": (_other_vocabulary, "--vocab-file"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_with_one_sentence(corpus: Path, tmp_path: Path, case: str) -> None:
    make, message = BAD_INPUT[case]
    refuse([*command(corpus, tmp_path / "run"), *make(tmp_path, corpus)], message)
    assert not (tmp_path / "run").exists()


def test_starts_from_a_checkpoint(corpus: Path, tmp_path: Path) -> None:
    """Its weights, shape and layout; one step at learning rate 0 leaves them as they are."""
    succeed(command(corpus, tmp_path / "first", "--train-iters", "1", "--save", f"{tmp_path}/a"))
    job = ("pretrain_ict.py", "--data-path", corpus, "--no-tensorboard", "--global-batch-size", 4, "--lr", 0)
    start = ("--pretrained-checkpoint", tmp_path / "a", "--train-iters", 1, "--save", tmp_path / "b")
    succeed(programs.command(*job, *start, "--output-dir", tmp_path / "second"))
    before, after = (saved_weights(tmp_path / name / "iter_0000001") for name in "ab")
    assert all(before[name].equal(after[name]) for name in before | after)
