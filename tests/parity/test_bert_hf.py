"""BERT computes what Hugging Face's does, layer by layer, and its weights survive the way there and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.bert import DEFAULTS, bert_config_from_hf, bert_config_to_hf
from megatron_retrieval.checkpoint.huggingface.format import export_encoder, import_encoder
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.bert import BertConfig, BertEncoder
from megatron_retrieval.models.sharding import shard_of
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_hf import attention_mask, random_batch, tiny_bert

State = dict[str, Tensor]
TOLERANCE = 1e-5


def _config() -> BertConfig:
    return bert_config_from_hf(tiny_bert().config.to_dict(), "tiny")


def _hidden_states(topology: ProcessTopology, full: State) -> list[Tensor]:
    """What leaves the embedding and every layer, each [B, T, D]."""
    encoder = BertEncoder(_config(), topology).eval()
    for name, parameter in encoder.named_parameters():
        parameter.data.copy_(shard_of(full[name], parameter, topology.tp_rank, topology.tp_size))
        assert torch.equal(gather_full(parameter, topology), full[name]), name
    states: list[Tensor] = []
    encoder.embedding.register_forward_hook(lambda _, __, output: states.append(output))
    for layer in encoder.encoder.layers:
        layer.register_forward_hook(lambda _, __, output: states.append(output))
    with torch.no_grad():
        last = encoder(random_batch())
    assert torch.equal(last, states[-1].transpose(0, 1))
    return [state.transpose(0, 1).contiguous() for state in states]


@pytest.mark.parametrize("tp_size", [1, 2])
def test_hidden_states_layer_by_layer(tp_size: int) -> None:
    model, batch = tiny_bert(), random_batch()
    mask = attention_mask(batch)
    with torch.no_grad():
        reference = model(batch.ids, attention_mask=mask, output_hidden_states=True).hidden_states
    full = import_encoder(model.state_dict(), _config(), "tiny")
    for states in run_on_ranks(_hidden_states, tp_size, full, tensor_model_parallel_size=tp_size):
        assert len(states) == len(reference) == 4
        for number, (ours, theirs) in enumerate(zip(states, reference, strict=True)):
            difference = (ours - theirs)[mask.bool()].abs().max().item()
            assert difference < TOLERANCE, f"layer {number} (0: embedding) at TP {tp_size} differs by {difference:.1e}"


def test_round_trip_is_bit_equal() -> None:
    state = {name: tensor for name, tensor in tiny_bert().state_dict().items() if not name.startswith("pooler.")}
    config = _config()
    exported = export_encoder(import_encoder(state, config, "tiny"), config)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[name], state[name]) for name in state)
    assert bert_config_from_hf(bert_config_to_hf(config), "tiny") == config


def _with_prefix(state: State) -> State:
    return {f"bert.{name}": tensor for name, tensor in state.items()} | {"cls.predictions.bias": torch.zeros(50)}


def _with_old_names(state: State) -> State:
    endings = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, old in endings.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state


def _with_position_ids(state: State) -> State:
    return {**state, "embeddings.position_ids": torch.arange(40)[None]}


def test_a_config_of_an_early_release_says_less() -> None:
    """What it leaves out is what transformers takes, as it does for these folders."""
    sizes = {name: value for name, value in tiny_bert().config.to_dict().items() if name not in DEFAULTS}
    theirs = transformers.BertConfig(**sizes).to_dict()
    assert bert_config_from_hf(sizes, "tiny") == bert_config_from_hf(theirs, "tiny")
    with pytest.raises(CheckpointError, match="num_hidden_layers is missing"):
        bert_config_from_hf({name: value for name, value in sizes.items() if name != "num_hidden_layers"}, "tiny")


@pytest.mark.parametrize("variant", [_with_prefix, _with_old_names, _with_position_ids])
def test_names_of_other_releases(variant: Callable[[State], State]) -> None:
    state, config = tiny_bert().state_dict(), _config()
    expected, imported = import_encoder(state, config, "tiny"), import_encoder(variant(state), config, "tiny")
    assert imported.keys() == expected.keys()
    assert all(torch.equal(imported[name], expected[name]) for name in expected)


def test_missing_and_unknown_weights_are_named() -> None:
    state, config = tiny_bert().state_dict(), _config()
    missing = {name: tensor for name, tensor in state.items() if name != "encoder.layer.1.output.dense.bias"}
    with pytest.raises(CheckpointError, match=r"folder: 1 weights are missing.*encoder\.layer\.1\.output\.dense\.bias"):
        import_encoder(missing, config, "folder")
    with pytest.raises(CheckpointError, match=r"folder: 1 weights have no place.*adapter\.weight"):
        import_encoder({**state, "adapter.weight": torch.zeros(1)}, config, "folder")


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_act", "relu"), ("position_embedding_type", "relative_key"), ("is_decoder", True)]
)
def test_other_kinds_of_bert_are_refused(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        bert_config_from_hf({**tiny_bert().config.to_dict(), key: value}, "folder/config.json")
