"""The mean of models: between their weights, and only of models that read texts alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.mean_of_weights import save_mean
from megatron_retrieval.checkpoint.store.reader import TensorReader
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

TINY = tiny_dual_encoder_config(shared=True)
WORDS = ["w1", "w2"]


def _vocabulary(folder: Path, words: list[str]) -> WordPieceTokenizer:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    return WordPieceTokenizer(folder / "vocab.txt")


@pytest.fixture
def topology() -> Iterator[ProcessTopology]:
    with process_topology(ParallelConfig(device="cpu")) as made:
        yield made


@pytest.fixture
def encoder(topology: ProcessTopology, tmp_path: Path) -> Path:
    """A random dual encoder."""
    model, words, lengths = DualEncoder(TINY, topology, seed=1), _vocabulary(tmp_path, WORDS), TextFormatConfig()
    return DUAL_ENCODER.save(tmp_path / "one", model, topology, TINY, words, lengths)


def test_the_mean_lies_between(encoder: Path, topology: ProcessTopology, tmp_path: Path) -> None:
    other = DualEncoder(TINY, topology, seed=2)
    one = DUAL_ENCODER.describe(encoder)
    DUAL_ENCODER.save(tmp_path / "other", other, topology, TINY, one.vocabulary(), one.layout)
    sources = [one, DUAL_ENCODER.describe(tmp_path / "other")]
    mean = DUAL_ENCODER.describe(save_mean(sources, tmp_path / "mean", topology))
    first, second, between = (TensorReader(found.folder, found.manifest) for found in (*sources, mean))
    for name in first.names():
        assert torch.equal(between.full(name), (first.full(name) + second.full(name)) / 2), name


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pooling": "mean"}, "its pooling is 'mean', that of .* is 'cls'"),
        ({"query_prefix": "w1 "}, "its query-prefix is 'w1 ', that of"),
        ({"words": ["w2", "w1"]}, "its vocabulary is"),
    ],
)
def test_models_that_read_texts_otherwise_have_no_mean(
    encoder: Path, topology: ProcessTopology, tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    found = DUAL_ENCODER.describe(encoder)
    words = _vocabulary(tmp_path, change.pop("words", WORDS))
    shape, layout = (
        replace(part, **{name: value for name, value in change.items() if hasattr(part, name)})
        for part in (found.shape, found.layout)
    )
    model = DualEncoder(shape, topology)
    other = DUAL_ENCODER.save(tmp_path / "other", model, topology, shape, words, layout)
    with pytest.raises(CheckpointError, match=problem):
        save_mean([found, DUAL_ENCODER.describe(other)], tmp_path / "mean", topology)
    assert not (tmp_path / "mean").exists()
