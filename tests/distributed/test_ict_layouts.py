"""An ICT run gives one loss curve at every layout of ranks, and continues at any other from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_retrieval.testing.runs import ICT, LAYOUTS, curve, rewind, saved_weights, train
from megatron_retrieval.testing.tiny import write_tiny_corpus

TINY = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --max-position-embeddings 32 --init-method-std 0.2 "
    "--retriever-seq-length 32 --query-seq-length 16 --no-tensorboard --log-interval 1 --eval-interval 20 "
    "--global-batch-size 9 --micro-batch-size 4 --lr 3e-3 --lr-warmup-iters 2 --seed 5 --valid-fraction 0.2 "
    "--pooling mean --biencoder-shared-query-context-model --no-retriever-score-scaling --train-iters 20"
).split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


def _words(corpus: Path, output: Path, *flags: str, dropout: float = 0.0) -> list[str]:
    words = [*TINY, "--data-path", str(corpus), "--output-dir", str(output)]
    return [*words, "--hidden-dropout", str(dropout), "--attention-dropout", str(dropout), *flags]


def test_same_losses_at_every_layout_and_after_a_change_of_layout(corpus: Path, tmp_path: Path) -> None:
    train(ICT, _words(corpus, tmp_path / "single"))
    expected = curve(tmp_path / "single")
    assert len(expected) == 20
    assert min(expected[-5:]) < 0.6 * expected[0]
    saved = tmp_path / "saved"
    for name, flags in [("TP 2", ["--save", str(saved), "--save-interval", "10"]), ("DP 2", [])]:
        train(ICT, _words(corpus, tmp_path / name, *flags), *LAYOUTS[name])
        assert curve(tmp_path / name) == pytest.approx(expected, rel=1e-4)
        for key in ("num_false_negatives", "valid_accuracy", "valid_accuracy@5"):
            assert curve(tmp_path / name, key) == pytest.approx(curve(tmp_path / "single", key))
    assert max(curve(tmp_path / "single", "num_false_negatives")) > 0
    rewind(saved, 10)
    train(ICT, _words(corpus, tmp_path / "continued", "--load", str(saved)), *LAYOUTS["DP 2"])
    assert curve(tmp_path / "continued") == pytest.approx(expected[10:], rel=1e-4)


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    """Drawn queries and dropout included, over the end of an epoch."""
    flags = ["--train-iters", "9", "--save-interval", "3"]
    train(ICT, _words(corpus, tmp_path / "whole", *flags, "--save", str(tmp_path / "a"), dropout=0.2))
    rewind(tmp_path / "a", 3)
    words = [*flags, "--load", str(tmp_path / "a"), "--save", str(tmp_path / "b")]
    train(ICT, _words(corpus, tmp_path / "resumed", *words, dropout=0.2))
    assert curve(tmp_path / "resumed") == curve(tmp_path / "whole")[3:]
    first, second = (saved_weights(tmp_path / name / "iter_0000009") for name in "ab")
    assert all(first[name].equal(second[name]) for name in first | second)
