"""Training starts from either kind of checkpoint: what travels is bit equal at any layout, the rest stays as drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from megatron_retrieval.checkpoint.kinds import dual_encoder, masked_lm
from megatron_retrieval.checkpoint.kinds.description import VOCAB_NAME
from megatron_retrieval.checkpoint.kinds.dual_encoder import describe_dual_encoder
from megatron_retrieval.checkpoint.kinds.masked_lm import load_masked_lm
from megatron_retrieval.checkpoint.kinds.starting_point import describe_starting_point, load_starting_weights
from megatron_retrieval.checkpoint.store.writer import save_checkpoint
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config

State = dict[str, Tensor]
TEXT_FORMAT = TextFormatConfig(query_seq_length=8, retriever_seq_length=12)
SAVED_SEED, FRESH_SEED = 1, 2


def _config(shared: bool, projection: int = 0) -> DualEncoderConfig:
    bert = tiny_dual_encoder_config().bert
    return DualEncoderConfig(
        bert=bert, biencoder_shared_query_context_model=shared, biencoder_projection_dim=projection
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
    bert = _config(False).bert
    models = {
        name: DualEncoder(_config(name == "shared"), topology, seed=SAVED_SEED) for name in ("shared", "separate")
    }
    for name, model in {**models, "masked-lm": MaskedLanguageModel(bert, topology, seed=SAVED_SEED)}.items():
        if isinstance(model, DualEncoder):
            kind, config = (
                dual_encoder.KIND,
                dual_encoder.checkpoint_config(model.config, TEXT_FORMAT, lower_case=False),
            )
        else:
            kind, config = masked_lm.KIND, masked_lm.masked_lm_checkpoint_config(bert, lower_case=False)
        save_checkpoint(f"{folder}/{name}", model, topology, kind=kind, config=config, assets={VOCAB_NAME: b"[PAD]\n"})
        states |= {f"{name}.{parameter}": full for parameter, full in _full(model, topology).items()}
    return states


def _start_all(topology: ProcessTopology, folder: str, saved: State) -> None:
    """Each kind of model from each kind of checkpoint."""
    masked, shared, separate = (_encoder(saved, f"{name}.") for name in ("masked-lm", "shared", "separate"))
    starts = {name: describe_starting_point(f"{folder}/{name}") for name in ("masked-lm", "shared", "separate")}
    bert = _config(False).bert

    model = DualEncoder(_config(False, projection=8), topology, seed=FRESH_SEED)
    fresh = _full(model, topology)
    load_starting_weights(starts["masked-lm"], model, topology)
    started = _full(model, topology)
    for tower in ("query", "passage"):
        _assert_equal(_encoder(started, f"towers.{tower}.bert."), _encoder(masked, "bert."))
        _assert_equal(_encoder(started, f"towers.{tower}.projection."), _encoder(fresh, f"towers.{tower}.projection."))

    model = DualEncoder(_config(False), topology, seed=FRESH_SEED)
    load_starting_weights(starts["separate"], model, topology)
    _assert_equal(_full(model, topology), separate)
    load_starting_weights(starts["shared"], model, topology)
    for tower in ("query", "passage"):
        _assert_equal(_encoder(_full(model, topology), f"towers.{tower}."), _encoder(shared, "towers.shared."))
    with pytest.raises(CheckpointError, match="one encoder for questions and one for passages"):
        load_starting_weights(starts["separate"], DualEncoder(_config(True), topology), topology)

    language_model = MaskedLanguageModel(bert, topology, seed=FRESH_SEED)
    fresh = _full(language_model, topology)
    for name, tower in (("separate", "passage"), ("shared", "shared")):
        load_starting_weights(starts[name], language_model, topology)
        started = _full(language_model, topology)
        _assert_equal(_encoder(started, "bert."), _encoder(saved, f"{name}.towers.{tower}.bert."))
        _assert_equal(_encoder(started, "head."), _encoder(fresh, "head."))
    load_starting_weights(starts["masked-lm"], language_model, topology)
    _assert_equal(_full(language_model, topology), masked)
    _assert_equal(_full(load_masked_lm(f"{folder}/masked-lm", topology).model, topology), masked)


def test_every_model_starts_from_every_checkpoint(tmp_path: Path) -> None:
    (saved,) = run_on_ranks(_save_all, 1, str(tmp_path))
    run_on_ranks(_start_all, 2, str(tmp_path), saved, tensor_model_parallel_size=2)
    _check_descriptions(tmp_path)


def _check_descriptions(folder: Path) -> None:
    start = describe_starting_point(folder / "masked-lm")
    default = DualEncoderConfig(pooling="mean", biencoder_projection_dim=4)
    assert start.dual_encoder_over(default) == DualEncoderConfig(
        bert=_config(False).bert, pooling="mean", biencoder_projection_dim=4
    )
    assert start.text_format_over(TextFormatConfig()) == TextFormatConfig(query_seq_length=16, retriever_seq_length=16)
    assert start.lower_case is False
    start = describe_starting_point(folder / "shared")
    assert start.dual_encoder_over(default) == _config(True)
    assert start.text_format_over(TextFormatConfig()) == TEXT_FORMAT
    with pytest.raises(CheckpointError, match="holds a masked-lm, where a dual-encoder is needed"):
        describe_dual_encoder(folder / "masked-lm")
    with pytest.raises(CheckpointError, match="holds a dual-encoder, where a masked-lm is needed"):
        masked_lm.describe_masked_lm(folder / "shared")
    manifest = folder / "masked-lm" / "iter_0000000" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"num-layers"', '"num-layer"'))
    with pytest.raises(CheckpointError, match="the setting 'num-layers' is missing"):
        describe_starting_point(folder / "masked-lm")
    manifest.write_text(text.replace('"kind": "masked-lm"', '"kind": "reader"'))
    with pytest.raises(CheckpointError, match="holds a reader, where a dual-encoder or masked-lm is needed"):
        describe_starting_point(folder / "masked-lm")
