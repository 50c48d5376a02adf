"""Training starts from either kind of checkpoint: what travels is bit equal at any layout, the rest stays as drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.masked_lm import MASKED_LM
from megatron_retrieval.checkpoint.kinds.registry import describe
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

State = dict[str, Tensor]
TEXT_FORMAT = TextFormatConfig(query_seq_length=8, retriever_seq_length=12)
SAVED_SEED, FRESH_SEED = 1, 2
VOCABULARY = WordPieceTokenizer("vocab.txt", False, tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])


def _config(shared: bool, projection: int = 0) -> DualEncoderConfig:
    bert = tiny_dual_encoder_config().encoder
    return DualEncoderConfig(
        encoder=bert, biencoder_shared_query_context_model=shared, biencoder_projection_dim=projection
    )


def _full(model: nn.Module, topology: ProcessTopology) -> State:
    return {name: gather_full(parameter, topology).clone() for name, parameter in model.named_parameters()}


def _encoder(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): full for name, full in state.items() if name.startswith(prefix)}


def _assert_equal(first: State, second: State) -> None:
    assert first.keys() == second.keys()
    assert first
    assert all(torch.equal(first[name], second[name]) for name in first)


def _save_all(topology: ProcessTopology, folder: str) -> State:
    """One checkpoint of each kind; the weights of all, by kind."""
    states: State = {}
    bert = _config(False).encoder
    models = {
        name: DualEncoder(_config(name == "shared"), topology, seed=SAVED_SEED) for name in ("shared", "separate")
    }
    language_model = MaskedLanguageModel(bert, topology, seed=SAVED_SEED)
    for name, model in models.items():
        DUAL_ENCODER.save(f"{folder}/{name}", model, topology, model.config, VOCABULARY, TEXT_FORMAT)
    MASKED_LM.save(f"{folder}/masked-lm", language_model, topology, bert, VOCABULARY)
    for name, model in {**models, "masked-lm": language_model}.items():
        states |= {f"{name}.{parameter}": full for parameter, full in _full(model, topology).items()}
    return states


def _start_all(topology: ProcessTopology, folder: str, saved: State) -> None:
    """Each kind of model from each kind of checkpoint."""
    masked, shared, separate = (_encoder(saved, f"{name}.") for name in ("masked-lm", "shared", "separate"))
    starts = {
        name: describe(f"{folder}/{name}", DUAL_ENCODER.starts_from) for name in ("masked-lm", "shared", "separate")
    }
    bert = _config(False).encoder

    model = DualEncoder(_config(False, projection=8), topology, seed=FRESH_SEED)
    fresh = _full(model, topology)
    DUAL_ENCODER.start(model, starts["masked-lm"], topology)
    started = _full(model, topology)
    for tower in ("query", "passage"):
        _assert_equal(_encoder(started, f"towers.{tower}.bert."), _encoder(masked, "bert."))
        _assert_equal(_encoder(started, f"towers.{tower}.projection."), _encoder(fresh, f"towers.{tower}.projection."))

    model = DualEncoder(_config(False), topology, seed=FRESH_SEED)
    DUAL_ENCODER.start(model, starts["separate"], topology)
    _assert_equal(_full(model, topology), separate)
    DUAL_ENCODER.start(model, starts["shared"], topology)
    for tower in ("query", "passage"):
        _assert_equal(_encoder(_full(model, topology), f"towers.{tower}."), _encoder(shared, "towers.shared."))
    with pytest.raises(CheckpointError, match="one encoder for questions and one for passages"):
        DUAL_ENCODER.start(DualEncoder(_config(True), topology), starts["separate"], topology)

    language_model = MaskedLanguageModel(bert, topology, seed=FRESH_SEED)
    fresh = _full(language_model, topology)
    for name, tower in (("separate", "passage"), ("shared", "shared")):
        MASKED_LM.start(language_model, starts[name], topology)
        started = _full(language_model, topology)
        _assert_equal(_encoder(started, "bert."), _encoder(saved, f"{name}.towers.{tower}.bert."))
        _assert_equal(_encoder(started, "head."), _encoder(fresh, "head."))
    MASKED_LM.start(language_model, starts["masked-lm"], topology)
    _assert_equal(_full(language_model, topology), masked)
    _assert_equal(_full(MASKED_LM.load(f"{folder}/masked-lm", topology).model, topology), masked)


def test_every_model_starts_from_every_checkpoint(tmp_path: Path) -> None:
    (saved,) = run_on_ranks(_save_all, 1, str(tmp_path))
    run_on_ranks(_start_all, 2, str(tmp_path), saved, tensor_model_parallel_size=2)
    _check_descriptions(tmp_path)


def _check_descriptions(folder: Path) -> None:
    start = describe(folder / "masked-lm", DUAL_ENCODER.starts_from)
    default = DualEncoderConfig(pooling="mean", biencoder_projection_dim=4)
    assert DUAL_ENCODER.shape_from(start, default) == DualEncoderConfig(
        encoder=_config(False).encoder, pooling="mean", biencoder_projection_dim=4
    )
    assert DUAL_ENCODER.layout_from(start, TextFormatConfig()) == TextFormatConfig(
        query_seq_length=16, retriever_seq_length=16
    )
    assert start.vocabulary().settings() == {"lower_case": False}
    start = describe(folder / "shared", DUAL_ENCODER.starts_from)
    assert DUAL_ENCODER.shape_from(start, default) == _config(True)
    assert DUAL_ENCODER.layout_from(start, TextFormatConfig()) == TEXT_FORMAT
    with pytest.raises(CheckpointError, match="holds a masked-lm, where a dual-encoder is needed"):
        DUAL_ENCODER.describe(folder / "masked-lm")
    with pytest.raises(CheckpointError, match="holds a dual-encoder, where a masked-lm is needed"):
        MASKED_LM.describe(folder / "shared")
    manifest = folder / "masked-lm" / "iter_0000000" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"num-layers"', '"num-layer"'))
    with pytest.raises(CheckpointError, match="the setting 'num-layers' is missing"):
        describe(folder / "masked-lm", DUAL_ENCODER.starts_from)
    manifest.write_text(text.replace('"kind": "masked-lm"', '"kind": "reader"'))
    with pytest.raises(
        CheckpointError, match="holds a reader, where a dual-encoder or masked-lm or causal-lm is needed"
    ):
        describe(folder / "masked-lm", DUAL_ENCODER.starts_from)
