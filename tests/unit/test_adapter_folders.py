"""Folders of PEFT's over checkpoints: what comes in by which names, and that nothing that was trained is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.adapter_folders import import_adapter
from megatron_retrieval.checkpoint.huggingface.causal import causal_config_from_hf
from megatron_retrieval.checkpoint.huggingface.formats import FORMATS, export_model
from megatron_retrieval.checkpoint.huggingface.peft import A, B, read_adapter, write_adapter
from megatron_retrieval.checkpoint.kinds.causal_lm import CAUSAL_LM
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.t5 import T5_KIND
from megatron_retrieval.checkpoint.store.base import BaseCheckpoint
from megatron_retrieval.checkpoint.store.writer import save_checkpoint
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.adapters import LoraConfig
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe
from megatron_retrieval.testing.tiny_hf import tiny_causal
from megatron_retrieval.testing.tiny_sentencepiece import NUM_PIECES, write_sentencepiece
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer

SHAPE = causal_config_from_hf(tiny_causal("llama").config.to_dict(), "tiny")
LORA, LAYER = LoraConfig(lora_rank=2, lora_alpha=4.0), "layers.1.mlp.down_proj"
BASES = ["dual-encoder", "causal-lm"]


@pytest.fixture(scope="module")
def topology() -> Iterator[ProcessTopology]:
    with process_topology(ParallelConfig(device="cpu")) as made:
        yield made


@pytest.fixture(scope="module")
def folder(topology: ProcessTopology, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, a dual encoder with a projection over one of the same shape, and a T5."""
    folder = tmp_path_factory.mktemp("bases")
    t5 = T5Config(
        num_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        vocab_size=NUM_PIECES + 100,
        untie_embeddings_and_output_weights=True,
    )
    pieces = SentencePieceTokenizer(write_sentencepiece(folder / "spiece.model"))
    T5_KIND.save(folder / "t5", T5_KIND.build(t5, pieces.special, topology), topology, t5, pieces)
    vocabulary = ByteBpeTokenizer(write_byte_bpe(folder, ends_texts=True))
    CAUSAL_LM.save(
        folder / "causal-lm", CAUSAL_LM.build(SHAPE, vocabulary.special, topology), topology, SHAPE, vocabulary
    )
    shape = DualEncoderConfig(
        encoder=SHAPE, pooling="last", biencoder_shared_query_context_model=True, biencoder_projection_dim=8
    )
    model, texts = DUAL_ENCODER.build(shape, vocabulary.special, topology), TextFormatConfig(retriever_seq_length=32)
    DUAL_ENCODER.save(folder / "dual-encoder", model, topology, shape, vocabulary, texts)
    return folder


def _adapter(folder: Path, linear: str, num_rows: int = 32, width: int = 48) -> dict[str, Tensor]:
    """A folder that adapts one matrix of this size."""
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(2, width, generator=generator), torch.randn(num_rows, 2, generator=generator)
    folder.mkdir()
    write_adapter(folder, LORA, {linear + A: down, linear + B: up}, "tiny")
    return {"a": down, "b": up}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_of_a_model_with_heads_and_without(
    folder: Path, topology: ProcessTopology, tmp_path: Path, base: str, prefix: str
) -> None:
    """`LlamaModel` and `LlamaForCausalLM` call a matrix by other names; adapters of both fit a base of either kind."""
    expected = _adapter(tmp_path / "peft", prefix + LAYER)
    import_adapter([tmp_path / "peft"], folder / base, tmp_path / "out", topology)
    export_model("peft", tmp_path / "out", tmp_path / "again")
    lora, state = read_adapter(tmp_path / "again")
    own = LAYER if base == "dual-encoder" else f"model.{LAYER}"
    assert state.keys() == {own + A, own + B}
    assert lora.scale == LORA.scale
    assert torch.equal(state[own + A], expected["a"])
    assert torch.equal(state[own + B], expected["b"])


@pytest.mark.parametrize(
    ("base", "message"),
    [
        *((base, "2 tensors have no place in the base, among them lm_head") for base in BASES),
        ("t5", "adapts output, which is no linear that takes adapters"),
    ],
)
def test_an_adapter_of_the_output_is_refused(
    folder: Path, topology: ProcessTopology, tmp_path: Path, base: str, message: str
) -> None:
    _adapter(tmp_path / "peft", "lm_head", NUM_PIECES + 100, 32)
    with pytest.raises(CheckpointError, match=message):
        import_adapter([tmp_path / "peft"], folder / base, tmp_path / "out", topology)


def test_a_head_that_was_trained_beside_adapters_is_not_left_out(
    folder: Path, topology: ProcessTopology, tmp_path: Path
) -> None:
    """One that is the base's still is not named: the adapters are the whole difference."""
    _adapter(tmp_path / "peft", LAYER)
    adapted = import_adapter([tmp_path / "peft"], folder / "dual-encoder", tmp_path / "out", topology)
    export_model("peft", adapted, tmp_path / "same-head")
    found = DUAL_ENCODER.describe(adapted)
    model = found.load(topology)
    with torch.no_grad():
        model.towers["shared"].projection.bias.add_(1.0)
    config, assets, base = found.manifest.config, found.vocabulary().assets(), BaseCheckpoint(folder / "dual-encoder")
    save_checkpoint(
        tmp_path / "trained", model, topology, kind=DUAL_ENCODER.name, config=config, assets=assets, base=base
    )
    message = r"towers\.shared\.projection\.bias was trained beside the adapters .* export the merged model"
    with pytest.raises(CheckpointError, match=message):
        export_model("peft", tmp_path / "trained", tmp_path / "other-head")
    assert not (tmp_path / "other-head").exists()


@pytest.mark.parametrize("name", ["sentence-transformers", "hf-bert", "hf-causal-lm"])
def test_folders_of_adapters_are_told_from_models(tmp_path: Path, name: str) -> None:
    """Such a folder of sentence-transformers has all but the model."""
    _adapter(tmp_path / "peft", LAYER)
    modules = [{"path": "", "type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling")]
    (tmp_path / "peft" / "modules.json").write_text(json.dumps(modules))
    message = r"peft: holds adapter_config.json, but no config.json: .* --format peft --input FOLDER --base CHECKPOINT"
    with pytest.raises(CheckpointError, match=message):
        FORMATS[name].read([tmp_path / "peft"])
