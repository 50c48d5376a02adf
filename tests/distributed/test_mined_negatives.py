"""Hard negatives that are mined anew while the encoder learns: alike at any number of ranks, and after a restart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_retrieval.testing.runs import FINETUNE, curve, rewind, train
from megatron_retrieval.testing.tiny import write_tiny_evidence

FLAGS = (
    "--num-layers 1 --hidden-size 32 --num-attention-heads 4 --max-position-embeddings 32 --init-method-std 0.2 "
    "--retriever-seq-length 32 --query-seq-length 16 --no-tensorboard --log-interval 1 --pooling mean "
    "--global-batch-size 8 --micro-batch-size 8 --lr 3e-3 --seed 5 --biencoder-shared-query-context-model "
    "--no-retriever-score-scaling --hidden-dropout 0 --attention-dropout 0 --num-hard-negatives 2 --train-iters 7 "
    "--index-refresh-interval 3 --mined-depth 6 --embedding-dtype float32"
).split()


def test_number_of_ranks_and_restarts_change_nothing(tmp_path: Path) -> None:
    """Resumed at a change of the index, and between two."""
    evidence = write_tiny_evidence(tmp_path, num_distractors=40)
    data = ["--train-data", f"{tmp_path}/biencoder.json", "--vocab-file", f"{tmp_path}/vocab.txt"]
    words, saved = [*FLAGS, *data, "--evidence", str(evidence)], tmp_path / "saved"
    whole = [*words, "--output-dir", f"{tmp_path}/one", "--save", str(saved), "--save-interval", "1"]
    train(FINETUNE, whole)
    expected = curve(tmp_path / "one")
    assert len(expected) == 7
    assert curve(tmp_path / "one", "index_version") == [3, 6]
    found = [load_file(saved / f"iter_000000{step}" / "states.tp0of1.safetensors") for step in (3, 6)]
    first, second = (tensors["mined negatives.rows"] for tensors in found)
    assert first.shape == second.shape == (22, 6)
    assert not first.equal(second)
    assert ((first >= 0) & (first < 62)).all()
    for step, num_ranks, tp_size in ((3, 1, 1), (5, 2, 1), (5, 2, 2)):
        rewind(saved, step)
        output = tmp_path / f"from {step} at {num_ranks}, {tp_size}"
        shutil.copytree(tmp_path / "one" / "index", output / "index")
        train(FINETUNE, [*words, "--output-dir", str(output), "--load", str(saved)], num_ranks, tp_size)
        assert curve(output) == pytest.approx(expected[step:], rel=1e-4 if num_ranks > 1 else 0)
