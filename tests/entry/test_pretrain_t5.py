"""T5's pretraining as its user runs it: one process and two, killed and resumed, exported, refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
import yaml
from programs import command, losses, refuse, succeed

from megatron_retrieval.testing.runs import rewind, saved_weights
from megatron_retrieval.testing.tiny import write_tiny_corpus

SHAPE = "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --ffn-hidden-size 32".split()
TINY = "--seq-length 32 --no-tensorboard --log-interval 1 --global-batch-size 8 --lr 1e-3 --valid-fraction 0.1".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"), sentencepiece=True)


@pytest.fixture(scope="module")
def of_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with a WordPiece vocabulary."""
    return write_tiny_corpus(tmp_path_factory.mktemp("bert"), num_documents=2)


def _words(corpus: Path, output: Path, *flags: object, num_processes: int = 1) -> list[str]:
    """A tiny run from random weights."""
    job = ("pretrain_t5.py", *SHAPE, *TINY, "--data-path", corpus, "--output-dir", output)
    return command(*job, *flags, num_processes=num_processes)


def test_one_process_and_two(corpus: Path, tmp_path: Path) -> None:
    flags = ["--train-iters", "5", "--hidden-dropout", "0", "--attention-dropout", "0"]
    said = succeed(_words(corpus, tmp_path / "single", *flags))
    assert "sequences: " in said
    flags += ["--tensor-model-parallel-size", "2"]
    succeed(_words(corpus, tmp_path / "double", *flags, num_processes=2))
    expected = losses(tmp_path / "single")
    assert [iteration for iteration, _ in expected] == [1, 2, 3, 4, 5]
    assert [loss for _, loss in losses(tmp_path / "double")] == pytest.approx([loss for _, loss in expected], rel=1e-4)


def test_resumed_run_equals_the_uninterrupted_one(corpus: Path, tmp_path: Path) -> None:
    """Gaps and dropout included; what it leaves is a T5 for Hugging Face."""
    flags = ["--train-iters", "12", "--save-interval", "5"]
    succeed(_words(corpus, tmp_path / "whole", *flags, "--save", tmp_path / "a"))
    words = _words(corpus, tmp_path / "resumed", *flags, "--save", tmp_path / "b", "--load", tmp_path / "a")
    rewind(tmp_path / "a", 5)
    log = succeed(words)
    assert "resumed" in log
    assert "other settings" not in log
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")[5:]
    first, second = (saved_weights(tmp_path / name / "iter_0000012") for name in "ab")
    assert all(first[name].equal(second[name]) for name in first | second)

    export = (
        "tools/export_checkpoint.py",
        "--format",
        "hf-t5",
        "--checkpoint",
        tmp_path / "b",
        "--output",
        tmp_path / "hf",
    )
    succeed(command(*export))
    exported = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert exported.shared.weight.equal(first["embedding.weight"][:160])  # the rows beyond are padding
    assert (tmp_path / "hf" / "spiece.model").read_bytes() == (corpus / "spiece.model").read_bytes()
    settings = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())
    assert settings["vocab-size"] == exported.config.vocab_size == 160


BAD_SETTINGS = {
    "a corpus for BERT": (["--data-path", "{of_bert}"], "build the corpus with --tokenizer-model"),
    "more gaps than names": (["--seq-length", "4096"], "4550 tokens with 227 gaps, and a T5 has names for 100"),
    "fewer word embeddings than entries": (["--vocab-size", "100"], "--vocab-size 100 is less than the 160 entries"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_end_with_one_sentence(corpus: Path, of_bert: Path, tmp_path: Path, case: str) -> None:
    flags, message = BAD_SETTINGS[case]
    refuse(_words(corpus, tmp_path / "run", *[flag.format(of_bert=of_bert) for flag in flags]), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("program", ["pretrain_bert.py", "pretrain_ict.py"])
def test_a_corpus_for_t5s_is_refused_by_programs_for_berts(corpus: Path, tmp_path: Path, program: str) -> None:
    words = (program, *SHAPE, "--data-path", corpus, "--output-dir", tmp_path / "run", "--no-tensorboard")
    message = "a SentencePiece vocabulary, but a WordPiece vocabulary is needed; build the corpus with --vocab-file"
    refuse(command(*words), message)
    assert not (tmp_path / "run").exists()
