"""Checkpoints: named only once whole, the oldest removed, damage said."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.store.folders import LATEST_NAME
from megatron_retrieval.checkpoint.store.writer import save_checkpoint
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_dpr
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer


def _save(topology: ProcessTopology, folder: str, vocab: str, iterations: list[int], keep_last: int | None) -> str:
    config = tiny_dual_encoder_config()
    model, vocabulary = DualEncoder(config, topology, seed=1), WordPieceTokenizer(vocab)
    for iteration in iterations:
        path = save_checkpoint(
            folder,
            model,
            topology,
            kind=DUAL_ENCODER.name,
            config=DUAL_ENCODER.config(config, vocabulary, TextFormatConfig()),
            assets=vocabulary.assets(),
            iteration=iteration,
            keep_last=keep_last,
        )
    return DUAL_ENCODER.describe(path).fingerprint


def test_keeps_the_newest_and_fingerprints_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    _, vocab = write_tiny_dpr(tmp_path)
    (single,) = run_on_ranks(_save, 1, str(tmp_path / "a"), str(vocab), [10, 20, 30], 2)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["iter_0000020", "iter_0000030", LATEST_NAME]
    sharded = run_on_ranks(_save, 2, str(tmp_path / "b"), str(vocab), [0], None, tensor_model_parallel_size=2)
    assert sharded == [single, single]
    names = {path.name for path in (tmp_path / "b" / "iter_0000000").iterdir()}
    assert names == {"manifest.json", "model.tp0of2.safetensors", "model.tp1of2.safetensors", "vocab.txt"}


def test_damage_is_said(tmp_path: Path) -> None:
    _, vocab = write_tiny_dpr(tmp_path)
    run_on_ranks(_save, 1, str(tmp_path / "a"), str(vocab), [10], None)
    folder = tmp_path / "a" / "iter_0000010"
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest[:-40])
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged, or not the manifest of a checkpoint"):
        DUAL_ENCODER.describe(folder)
    (folder / "manifest.json").write_text(manifest.replace(DUAL_ENCODER.name, "reader"))
    with pytest.raises(CheckpointError, match="holds a reader, where a dual-encoder is needed"):
        DUAL_ENCODER.describe(folder)
