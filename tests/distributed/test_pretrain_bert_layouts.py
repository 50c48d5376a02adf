"""A masked-LM run gives one loss curve at every layout of ranks, and continues at any other from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_retrieval.testing.runs import BERT, LAYOUTS, curve, rewind, saved_weights, train
from megatron_retrieval.testing.tiny import write_tiny_corpus

TINY = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --max-position-embeddings 32 --init-method-std 0.2 "
    "--seq-length 32 --no-tensorboard --log-interval 1 --eval-interval 10 --global-batch-size 9 --micro-batch-size 4 "
    "--lr 1e-2 --lr-warmup-iters 2 --seed 5 --valid-fraction 0.3 --whole-word-masking --train-iters 20"
).split()


BF16 = ["--bf16", "--allow-slow-dtype"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


def _words(corpus: Path, output: Path, *flags: str, dropout: float = 0.0) -> list[str]:
    words = [*TINY, "--data-path", str(corpus), "--output-dir", str(output)]
    return [*words, "--hidden-dropout", str(dropout), "--attention-dropout", str(dropout), *flags]


@pytest.fixture(scope="module")
def single(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves."""
    output = tmp_path_factory.mktemp("single")
    train(BERT, _words(corpus, output))
    return output


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_losses_and_validation_at_every_layout(corpus: Path, single: Path, tmp_path: Path, layout: str) -> None:
    expected = curve(single)
    assert len(expected) == 20
    assert sum(expected[-5:]) < 0.85 * sum(expected[:5])
    train(BERT, _words(corpus, tmp_path), *LAYOUTS[layout])
    assert curve(tmp_path) == pytest.approx(expected, rel=1e-4)
    for key in ("valid_loss", "valid_accuracy"):
        assert len(curve(single, key)) == 2
        assert curve(tmp_path, key) == pytest.approx(curve(single, key), rel=1e-4)
    assert curve(tmp_path, "num_masked_tokens") == curve(single, "num_masked_tokens")


def test_checkpoint_of_two_shards_continues_at_two_copies(corpus: Path, single: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    train(BERT, _words(corpus, tmp_path / "tp2", "--save", str(saved), "--save-interval", "10"), *LAYOUTS["TP 2"])
    rewind(saved, 10)
    train(BERT, _words(corpus, tmp_path / "dp2", "--load", str(saved)), *LAYOUTS["DP 2"])
    assert curve(tmp_path / "dp2") == pytest.approx(curve(single)[10:], rel=1e-4)


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    """Masks and dropout included, over the end of an epoch."""
    flags = ["--train-iters", "9", "--save-interval", "3"]
    train(BERT, _words(corpus, tmp_path / "whole", *flags, "--save", str(tmp_path / "a"), dropout=0.2))
    rewind(tmp_path / "a", 3)
    flags += ["--load", str(tmp_path / "a"), "--save", str(tmp_path / "b")]
    train(BERT, _words(corpus, tmp_path / "resumed", *flags, dropout=0.2))
    assert curve(tmp_path / "resumed") == curve(tmp_path / "whole")[3:]
    first, second = (saved_weights(tmp_path / name / "iter_0000009") for name in "ab")
    assert all(first[name].equal(second[name]) for name in first | second)


def test_bf16_learns_and_resumes(corpus: Path, tmp_path: Path) -> None:
    flags = [*BF16, "--save", str(tmp_path / "a"), "--save-interval", "10"]
    train(BERT, _words(corpus, tmp_path / "whole", *flags), *LAYOUTS["TP 2"])
    losses = curve(tmp_path / "whole")
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    rewind(tmp_path / "a", 10)
    train(BERT, _words(corpus, tmp_path / "resumed", *BF16, "--load", str(tmp_path / "a")), *LAYOUTS["TP 2"])
    assert curve(tmp_path / "resumed") == losses[10:]
