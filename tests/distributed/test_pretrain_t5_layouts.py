"""T5's pretraining gives one loss curve at every layout of ranks, continues at any other, and starts from a T5."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_retrieval.testing.runs import LAYOUTS, T5, curve, rewind, saved_weights, train
from megatron_retrieval.testing.tiny import write_tiny_corpus

TINY = (
    "--num-layers 2 --decoder-num-layers 1 --hidden-size 32 --num-attention-heads 4 --ffn-hidden-size 64 "
    "--seq-length 32 --no-tensorboard --log-interval 1 --eval-interval 8 --global-batch-size 9 --micro-batch-size 4 "
    "--lr 1e-2 --lr-warmup-iters 2 --seed 5 --valid-fraction 0.3 --train-iters 16"
).split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"), sentencepiece=True)


def _words(corpus: Path, output: Path, *flags: str) -> list[str]:
    words = [*TINY, "--data-path", str(corpus), "--output-dir", str(output)]
    return [*words, "--hidden-dropout", "0", "--attention-dropout", "0", *flags]


@pytest.fixture(scope="module")
def single(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves, checkpoints included."""
    output = tmp_path_factory.mktemp("single")
    train(T5, _words(corpus, output, "--save", str(output / "saved"), "--save-interval", "8"))
    return output


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_losses_and_validation_at_every_layout(corpus: Path, single: Path, tmp_path: Path, layout: str) -> None:
    expected = curve(single)
    assert len(expected) == 16
    assert sum(expected[-4:]) < 0.85 * sum(expected[:4])
    train(T5, _words(corpus, tmp_path), *LAYOUTS[layout])
    assert curve(tmp_path) == pytest.approx(expected, rel=1e-4)
    for key in ("valid_loss", "valid_accuracy"):
        assert len(curve(single, key)) == 2
        assert curve(tmp_path, key) == pytest.approx(curve(single, key), rel=1e-4)
    assert curve(tmp_path, "num_target_tokens") == curve(single, "num_target_tokens")


def test_checkpoint_continues_at_two_shards(corpus: Path, single: Path, tmp_path: Path) -> None:
    rewind(single / "saved", 8)
    train(T5, _words(corpus, tmp_path, "--load", str(single / "saved")), *LAYOUTS["TP 2"])
    rewind(single / "saved", 16)
    assert curve(tmp_path) == pytest.approx(curve(single)[8:], rel=1e-4)


def test_starts_from_a_t5(corpus: Path, single: Path, tmp_path: Path) -> None:
    """Shape and weights are the checkpoint's: a step at learning rate 0 leaves them as they are, whatever the ranks."""
    start = ("--pretrained-checkpoint", str(single / "saved"), "--save", str(tmp_path / "a"))
    given = TINY.index("--seq-length")
    words = [*TINY[given:], *start, "--data-path", str(corpus), "--output-dir", str(tmp_path / "run")]
    train(T5, [*words, "--train-iters", "1", "--lr", "0"], *LAYOUTS["DP 2"])
    before, after = saved_weights(single / "saved" / "iter_0000016"), saved_weights(tmp_path / "a" / "iter_0000001")
    assert all(before[name].equal(after[name]) for name in before | after)
