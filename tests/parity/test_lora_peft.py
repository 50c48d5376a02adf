"""Adapters compute what PEFT's compute over the same Hugging Face model, and learn what they learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from megatron_retrieval.checkpoint.huggingface.bert import bert_config_from_hf, bert_table
from megatron_retrieval.checkpoint.huggingface.causal import causal_config_from_hf, causal_names, causal_table
from megatron_retrieval.checkpoint.huggingface.peft import (
    A,
    B,
    export_adapters,
    import_adapters,
    read_adapter,
    write_adapter,
)
from megatron_retrieval.checkpoint.huggingface.t5 import import_t5, t5_config_from_hf, t5_table
from megatron_retrieval.checkpoint.huggingface.weight_table import import_weights
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.adapters import LoraConfig, adapt
from megatron_retrieval.models.bert import BertEncoder
from megatron_retrieval.models.causal_lm import CausalConfig, CausalLM
from megatron_retrieval.models.sharding import shard_of
from megatron_retrieval.models.t5 import T5, shift_right
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_hf import attention_mask, random_batch, tiny_bert, tiny_causal, tiny_t5

LORA = LoraConfig(lora_rank=3, lora_alpha=6.0)
BERT_TARGETS, T5_TARGETS = ["query", "key", "value", "dense"], ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
Weights = dict[str, Tensor]


def _with_peft(model: Any, targets: list[str], **settings: Any) -> Any:
    """PEFT's model, with A and B far from where they start."""
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, **settings)
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.3, generator=generator))
    return adapted


def _named(gradients_of: Any) -> Weights:
    """The gradients of PEFT's adapters under the names of its files."""
    return {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
        for name, parameter in gradients_of.named_parameters()
        if parameter.grad is not None
    }


def _fill(model: nn.Module, full: Weights, topology: ProcessTopology) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in full:
                parameter.copy_(shard_of(full[name], parameter, topology.tp_rank, topology.tp_size))


def _gradients(model: nn.Module, topology: ProcessTopology) -> Weights:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(".adapter." in name for name in trained)
    return {name: gather_full(p, topology, p.grad) for name, p in trained.items()}


def _bert_step(topology: ProcessTopology, full: Weights, adapters: Weights) -> tuple[Tensor, Weights]:
    shape = bert_config_from_hf(tiny_bert().config.to_dict(), "tiny")
    model = BertEncoder(shape, topology)
    _fill(model, full, topology)
    model.eval()
    before = model(random_batch())
    adapt(model, LORA, topology)
    assert torch.equal(model(random_batch()), before), "step 0 is the base"
    _fill(model, adapters, topology)
    batch = random_batch()
    states = model(batch)
    (states * attention_mask(batch)[..., None]).pow(2).sum().backward()
    return states.detach(), _gradients(model, topology)


@pytest.mark.parametrize("tp_size", [1, 2])
def test_bert(tp_size: int) -> None:
    """Vectors and the gradients of every A and B; query, key and value are one matrix here."""
    plain = tiny_bert()
    table = list(bert_table(bert_config_from_hf(plain.config.to_dict(), "tiny")))
    full = import_weights(
        {name: p.detach() for name, p in plain.named_parameters() if not name.startswith("pooler")}, table, "", ""
    )
    theirs = _with_peft(plain, [rf"encoder.layer.{n}.{m}" for n in range(3) for m in _BERT_LINEARS])
    batch = random_batch()
    expected = theirs(input_ids=batch.ids, attention_mask=attention_mask(batch)).last_hidden_state
    (expected * attention_mask(batch)[..., None]).pow(2).sum().backward()
    state = {name.replace(".default", ""): p.detach() for name, p in theirs.base_model.model.named_parameters()}
    state = {name: tensor for name, tensor in state.items() if name.endswith((A, B))}
    ours = import_adapters(state, table, 3, full.__getitem__, Path("peft"))
    for states, gradients in run_on_ranks(_bert_step, tp_size, full, ours, tensor_model_parallel_size=tp_size):
        is_real = attention_mask(batch).bool()
        assert torch.allclose(states[is_real], expected[is_real], atol=1e-4)
        _assert_close(export_adapters(gradients, table), _named(theirs))


_BERT_LINEARS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
_BERT_LINEARS += ("intermediate.dense", "output.dense")


def _assert_close(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())), name


def _t5_step(topology: ProcessTopology, full: Weights, adapters: Weights, labels: Tensor) -> tuple[Tensor, Weights]:
    model = T5(t5_config_from_hf(tiny_t5(gated=True, tied=True).config.to_dict(), "tiny"), topology)
    _fill(model, full, topology)
    adapt(model.eval(), LORA, topology)
    _fill(model, adapters, topology)
    logits = model(random_batch(), shift_right(labels))[..., :100]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    return logits.detach(), _gradients(model, topology)


def test_t5() -> None:
    """Logits and gradients; also gate and values, queries of the decoder, and its keys and values."""
    plain = tiny_t5(gated=True, tied=True)
    shape = t5_config_from_hf(plain.config.to_dict(), "tiny")
    full = {name: w.detach().clone() for name, w in import_t5(plain.state_dict(), shape, "tiny").items()}
    theirs, batch = _with_peft(plain, T5_TARGETS), random_batch()
    labels = torch.randint(2, 50, (len(batch.ids), 5), generator=torch.Generator().manual_seed(5))
    found = theirs(input_ids=batch.ids, attention_mask=attention_mask(batch), labels=labels)
    found.loss.backward()
    state = {name.replace(".default", ""): p.detach() for name, p in theirs.base_model.model.named_parameters()}
    state = {name: tensor for name, tensor in state.items() if name.endswith((A, B))}
    ours = import_adapters(state, t5_table(shape), 3, full.__getitem__, Path("peft"))
    ((logits, gradients),) = run_on_ranks(_t5_step, 1, full, ours, labels)
    assert torch.allclose(logits, found.logits, atol=1e-3)
    _assert_close(export_adapters(gradients, t5_table(shape)), _named(theirs))


def _causal_step(topology: ProcessTopology, shape: CausalConfig, full: Weights, adapters: Weights) -> list[Any]:
    model = CausalLM(shape, topology)
    _fill(model, full, topology)
    adapt(model.eval(), LORA, topology)
    _fill(model, adapters, topology)
    batch = random_batch()
    places = attention_mask(batch).flatten().nonzero()[:, 0]
    logits = model(batch, places)[:, :50]
    logits.pow(2).sum().backward()
    return [logits.detach(), _gradients(model, topology)]


def test_llama() -> None:
    """Also heads that share keys and values: queries have more rows of the matrix than these."""
    plain, batch = tiny_causal("llama"), random_batch()
    shape = causal_config_from_hf(plain.config.to_dict(), "tiny")
    table = list(causal_table(shape))
    state = {name: w.detach().clone() for name, w in causal_names(plain.state_dict(), shape, "tiny").items()}
    full = import_weights(state, table, "tiny", "a causal language model")
    theirs = _with_peft(plain, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    is_real = attention_mask(batch).bool()
    expected = theirs(input_ids=batch.ids, attention_mask=attention_mask(batch)).logits[is_real][:, :50]
    expected.pow(2).sum().backward()
    adapters = {name.replace(".default", ""): p.detach() for name, p in theirs.base_model.model.named_parameters()}
    adapters = {name: tensor for name, tensor in adapters.items() if name.endswith((A, B))}
    ours = import_adapters(adapters, table, 3, full.__getitem__, Path("peft"))
    ((logits, gradients),) = run_on_ranks(_causal_step, 1, shape, full, ours)
    assert torch.allclose(logits, expected, atol=1e-3)
    _assert_close(export_adapters(gradients, table), _named(theirs))


def test_folders_go_both_ways(tmp_path: Path) -> None:
    """What PEFT wrote is read and written again; PEFT opens it and computes the same. Matrices that PEFT was not asked
    to adapt stay so, though ours is one with those that were."""
    table = list(bert_table(bert_config_from_hf(tiny_bert().config.to_dict(), "tiny")))
    plain = {name: p.detach() for name, p in tiny_bert().named_parameters() if not name.startswith("pooler")}
    full = import_weights(plain, table, "", "")
    theirs = _with_peft(tiny_bert(), ["query", "value"], use_rslora=True).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    config, state = read_adapter(tmp_path / "theirs")
    assert config.scale == pytest.approx(6 / 3**0.5)
    ours = import_adapters(state, table, config.lora_rank, full.__getitem__, tmp_path)
    exported = export_adapters(ours, table)
    assert exported.keys() == state.keys()
    (tmp_path / "ours").mkdir()
    write_adapter(tmp_path / "ours", config, exported, "tiny")
    again = peft.PeftModel.from_pretrained(tiny_bert(), str(tmp_path / "ours")).eval()
    ids = random_batch().ids
    assert torch.allclose(again(input_ids=ids)[0], theirs(input_ids=ids)[0], atol=1e-5)


STARTS: dict[str | bool, bool] = {
    **dict.fromkeys([True, False, "gaussian", "orthogonal", "mica"], True),
    **dict.fromkeys(["olora", "pissa", "pissa_niter_2"], False),
}


@pytest.mark.parametrize("start", STARTS)
def test_starts_that_alter_the_base_are_refused(tmp_path: Path, start: Any) -> None:
    """A start comes in where PEFT leaves the base as it was, and only there."""
    adapted = peft.get_peft_model(tiny_bert(), peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=start))
    adapted.save_pretrained(tmp_path)
    name = "encoder.layer.0.attention.self.query"
    matrix = adapted.base_model.model.get_submodule(name).base_layer.weight
    is_plain = torch.equal(matrix, tiny_bert().get_submodule(name).weight)
    assert is_plain == STARTS[start]
    if is_plain:
        assert read_adapter(tmp_path)[0].lora_rank == 2
        return
    with pytest.raises(CheckpointError, match=f"init_lora_weights is '{start}', which may alter the base"):
        read_adapter(tmp_path)


SAYS_SOMETHING = {
    "alora_invocation_tokens": [3, 4], "use_qalora": True, "use_bdlora": {"nblocks": 2}, "arrow_config": {"top_k": 2},
    "kasa_config": {"beta": 1.0}, "velora_config": {"num_groups": 2}, "monteclora_config": {"samples": 2},
    "use_dora": True, "lora_bias": True, "fan_in_fan_out": True, "modules_to_save": ["head"],
    "trainable_token_indices": [1], "target_parameters": ["experts"], "layer_replication": [[0, 1]],
    "rank_pattern": {"query": 3}, "alpha_pattern": {"query": 3}, "of_a_later_release": 1,
}  # fmt: skip


def test_settings_that_are_not_known_here_are_refused(tmp_path: Path) -> None:
    """Nothing that PEFT writes of a plain LoRA is; whatever else says something is refused by its name."""
    peft.get_peft_model(tiny_bert(), peft.LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    plain = json.loads(path.read_text())
    for key, value in SAYS_SOMETHING.items():
        path.write_text(json.dumps({**plain, key: value}))
        with pytest.raises(CheckpointError, match=f"{key} is .* Merge the adapter"):
            read_adapter(tmp_path)
    for key, value in {"bias": "all", "peft_type": "IA3"}.items():
        path.write_text(json.dumps({**plain, key: value}))
        with pytest.raises(CheckpointError, match=f"{key} is '{value}'; only "):
            read_adapter(tmp_path)
    path.write_text(json.dumps({**plain, **dict.fromkeys(SAYS_SOMETHING)}))
    assert read_adapter(tmp_path)[0].lora_rank == 2
