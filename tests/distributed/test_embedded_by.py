"""Embeddings serve a retriever whose encoder of passages is that of the checkpoint that made them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, LoadedDualEncoder, embedding_encoder
from megatron_retrieval.checkpoint.kinds.kind import Loaded
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.models.adapters import Adapter, LoraConfig, add_adapters
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_dpr
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

SHAPE = tiny_dual_encoder_config(shared=True)


def _check(topology: ProcessTopology, folder: str) -> bool:
    root, vocabulary = Path(folder), WordPieceTokenizer(Path(folder) / "vocab.txt")
    layout = TextFormatConfig(query_seq_length=12, retriever_seq_length=16)
    DUAL_ENCODER.save(root / "start", DualEncoder(SHAPE, topology, seed=1), topology, SHAPE, vocabulary, layout)
    start = DUAL_ENCODER.describe(root / "start")
    shape = dataclasses.replace(SHAPE, biencoder_shared_query_context_model=False)
    model = DualEncoder(shape, topology, seed=2)
    DUAL_ENCODER.start(model, start, topology)
    with torch.no_grad():
        next(model.towers["query"].parameters()).add_(1.0)
    longer = dataclasses.replace(layout, query_seq_length=14)
    DUAL_ENCODER.save(root / "trained", model, topology, shape, vocabulary, longer)
    trained = Loaded(model, DUAL_ENCODER.describe(root / "trained"))
    assert embedding_encoder(trained, None, topology) is trained.description
    assert embedding_encoder(trained, root / "start", topology).fingerprint == start.fingerprint
    DUAL_ENCODER.save(
        root / "shorter", model, topology, shape, vocabulary, dataclasses.replace(layout, retriever_seq_length=15)
    )
    with pytest.raises(MismatchError, match="encodes passages otherwise"):
        embedding_encoder(Loaded(model, DUAL_ENCODER.describe(root / "shorter")), root / "start", topology)
    # adapters beside frozen passages are never trained, and add nothing; trained ones do
    add_adapters(model, LoraConfig(lora_rank=2), topology)
    assert embedding_encoder(trained, root / "start", topology).fingerprint == start.fingerprint
    adapter = next(module for module in model.towers["passage"].modules() if isinstance(module, Adapter))
    for changed in (adapter.b, next(model.towers["passage"].parameters())):
        _check_refused(trained, root / "start", topology, changed)
    return True


def _check_refused(
    trained: LoadedDualEncoder, start: Path, topology: ProcessTopology, changed: torch.nn.Parameter
) -> None:
    before = changed.detach().clone()
    with torch.no_grad():
        changed.add_(1.0)
    with pytest.raises(MismatchError, match=r"--embedded-by .*start encodes passages otherwise than .*trained"):
        embedding_encoder(trained, start, topology)
    with torch.no_grad():
        changed.copy_(before)


def test_the_encoder_of_passages_decides(tmp_path: Path) -> None:
    write_tiny_dpr(tmp_path)
    assert run_on_ranks(_check, 1, str(tmp_path)) == [True]
