"""The forms of attention with a score on every key give what plain arithmetic in float64 gives, and its gradients, at
any tensor-parallel size; and decoders generate the same answers with each."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from torch import Tensor

from megatron_retrieval.models import score_attention
from megatron_retrieval.models.encoded_sources import EncodedSources
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig, FusionReader
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.models.layer_inputs import LayerInputs
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.multi_head_attention import CrossAttention
from megatron_retrieval.models.score_attention import add_key_features, add_query_features, choose_form
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config, t5_engine_config
from megatron_retrieval.parallel.megatron_compat import seed_dropout
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import random_texts

FORMS = ("explicit", "mask", "feature")
HIDDEN, NUM_HEADS, NUM_LABELS, NUM_SOURCES, NUM_SEQUENCES, NUM_TEXTS = 32, 4, 3, 4, 2, 5
#: keys: few take the plain form on CPU, many the fused kernels; widths of heads: one wants more padding than features
SIZES = [(40, 16, 0.5), (300, 16, 0.25), (300, 12, 0.5)]
DTYPES = {"float32": (torch.float32, 1e-5), "bf16": (torch.bfloat16, 2e-2)}
Values = dict[str, Tensor]


def _shape(head_width: int, dropout: float = 0.0) -> T5Config:
    return T5Config(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=NUM_HEADS,
        kv_channels=head_width,
        ffn_hidden_size=64,
        vocab_size=100,
        hidden_dropout=0.0,
        attention_dropout=dropout,
    )


def _inputs(num_keys: int, head_width: int, dtype: torch.dtype) -> Values:
    """States of sequences and sources, scores of texts, and whole weights; the last source is all padding."""
    random = torch.Generator().manual_seed(1)
    inner = NUM_HEADS * head_width
    shapes = {
        "states": (NUM_LABELS, NUM_SOURCES * NUM_SEQUENCES, HIDDEN),
        "memory": (NUM_SOURCES, num_keys, HIDDEN),
        "linear_q": (inner, HIDDEN),
        "linear_kv": (2 * inner, HIDDEN),
        "linear_proj": (HIDDEN, inner),
    }
    scale = {name: HIDDEN**-0.5 if name.startswith("linear") else 1.0 for name in shapes}
    values = {name: torch.randn(shape, generator=random).mul(scale[name]).to(dtype) for name, shape in shapes.items()}
    # tokens of a text have something in common, or the gradients of scores would be sums of which little is left
    of_texts = torch.randn(NUM_SOURCES, NUM_TEXTS, HIDDEN, generator=random)
    values["memory"] += of_texts.to(dtype).index_select(1, _text_of(num_keys))
    values["memory"][-1] = 0  # as `FusionReader.encode` has it
    scores = torch.randn(NUM_SOURCES, NUM_TEXTS, generator=random).mul(2)
    return {**values, "scores": scores, "score_weight": torch.tensor([1.5])}


def _text_of(num_keys: int) -> Tensor:
    return torch.arange(num_keys) * NUM_TEXTS // num_keys


def _key_bias(scores: Tensor, num_keys: int, lowest: float) -> Tensor:
    """[B, 1, 1, T]; each source has fewer keys than the one before."""
    keys = torch.arange(num_keys)
    lengths = torch.tensor([num_keys, num_keys - 3, 9, 0])
    return scores.index_select(1, _text_of(num_keys)).masked_fill(keys >= lengths[:, None], lowest)[:, None, None]


def _probe(output: Tensor) -> Tensor:
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)


def _expected(inputs: Values, head_width: int, scale: float) -> Values:
    """Output and gradients in float64."""
    leaves = {name: value.double().requires_grad_() for name, value in inputs.items()}
    source = torch.arange(NUM_SOURCES * NUM_SEQUENCES) // NUM_SEQUENCES
    query = (leaves["states"] @ leaves["linear_q"].t()).unflatten(2, (NUM_HEADS, head_width))
    both = (leaves["memory"] @ leaves["linear_kv"].t()).unflatten(2, (NUM_HEADS, 2, head_width))
    key, value = both[source].unbind(3)
    weighted = leaves["score_weight"] * leaves["scores"]
    bias = _key_bias(weighted, key.size(1), torch.finfo(torch.float64).min)[source]
    weights = (torch.einsum("lrhd,rthd->rhlt", query, key) * scale + bias).softmax(3)
    output = torch.einsum("rhlt,rthd->lrhd", weights, value).flatten(2) @ leaves["linear_proj"].t()
    (output * _probe(output)).sum().backward()
    return {"output": output.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def _attention(topology: ProcessTopology, inputs: Values, head_width: int, scale: float | None) -> CrossAttention:
    dtype = inputs["memory"].dtype
    engine = dataclasses.replace(t5_engine_config(_shape(head_width), topology.tp_size, dtype), softmax_scale=scale)
    attention = CrossAttention(engine, topology.groups).to(dtype)
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            whole = inputs[name.removesuffix(".weight")]
            parameter.copy_(whole.chunk(topology.tp_size, 1 if "proj" in name else 0)[topology.tp_rank])
    return attention


def _read(attention: CrossAttention, states: Tensor, memory: Tensor, bias: Tensor, form: str) -> Tensor:
    return attention(states, LayerInputs(memory=EncodedMemory(memory, bias, form)))


def _found(topology: ProcessTopology, inputs: Values, head_width: int, scale: float, form: str) -> Values:
    attention = _attention(topology, inputs, head_width, scale)
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("states", "memory", "scores", "score_weight")}
    weighted = leaves["score_weight"] * leaves["scores"]
    bias = _key_bias(weighted, inputs["memory"].size(1), torch.finfo(inputs["memory"].dtype).min)
    bias = copy_to_tensor_model_parallel_region(bias, group=topology.groups.tp)
    output = _read(attention, leaves["states"], leaves["memory"], bias, form)
    (output * _probe(output)).sum().backward()
    gradients = {
        name.removesuffix(".weight"): gather_full(parameter, topology, parameter.grad)
        for name, parameter in attention.named_parameters()
    }
    return {"output": output.detach(), **gradients, **{name: leaf.grad for name, leaf in leaves.items()}}


def _error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def _agree(topology: ProcessTopology, dtype_name: str) -> bool:
    dtype, tolerance = DTYPES[dtype_name]
    for num_keys, head_width, scale in SIZES:
        inputs = _inputs(num_keys, head_width, dtype)
        expected = _expected(inputs, head_width, scale)
        assert expected["scores"][:-1].abs().max() > 0.1
        for form in FORMS:
            found = _found(topology, inputs, head_width, scale, form)
            if dtype == torch.bfloat16:
                # one number, of the scores' gradients times the scores: little is left of their sum but rounding
                del found["score_weight"]
            for name, value in found.items():
                error = _error(value, expected[name])
                assert error < tolerance, f"{form}, {num_keys} keys, heads of {head_width}, {name}: {error:.1e}"
    return True


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("tp_size", [1, 2])
def test_forms_and_their_gradients(tp_size: int, dtype_name: str) -> None:
    assert run_on_ranks(_agree, tp_size, dtype_name, tensor_model_parallel_size=tp_size) == [True] * tp_size


@torch.no_grad()
def _alone(topology: ProcessTopology) -> bool:
    """What holds of each form for itself."""
    for dtype, tolerance in (*DTYPES.values(), (torch.float16, 2e-3)):
        inputs = _inputs(300, 16, dtype)
        lowest = torch.finfo(dtype).min
        bias = _key_bias(inputs["scores"], 300, lowest)
        is_padding = bias[:-1, 0, 0] == lowest
        memory = inputs["memory"].clone()
        memory[:-1][is_padding] = 30.0
        for form in FORMS:
            attention = _attention(topology, inputs, 16, None).eval()
            output = _read(attention, inputs["states"], inputs["memory"], bias, form)
            assert output.isfinite().all(), f"{form} in {dtype}: a source that is all padding"
            # other states at padding, where there is anything else to read, change no bit
            others = _read(attention, inputs["states"], memory, bias, form)
            assert torch.equal(output[:, :-NUM_SEQUENCES], others[:, :-NUM_SEQUENCES]), f"{form} in {dtype}: padding"
            # keys and values that were computed before have what the form puts there
            precomputed = EncodedMemory(inputs["memory"], bias, form).precompute([attention])
            later = attention(inputs["states"][2:], LayerInputs(memory=precomputed))
            assert _error(later, output[2:]) < tolerance, f"{form} in {dtype}: precomputed"
    return True


def test_padding_has_no_weight_and_precomputed_keys_hold_what_a_form_needs() -> None:
    assert run_on_ranks(_alone, 1) == [True]


@torch.no_grad()
def _errors_of_great_scores(topology: ProcessTopology) -> dict[str, float]:
    """Scores of -300 and thereabout, which bf16 rounds to even numbers."""
    inputs = _inputs(300, 16, torch.bfloat16)
    inputs["scores"], inputs["score_weight"] = inputs["scores"] / 4 - 300, torch.ones(1)
    with torch.enable_grad():
        expected = _expected(inputs, 16, 0.25)["output"]
    attention = _attention(topology, inputs, 16, 0.25)
    bias = _key_bias(inputs["scores"], 300, torch.finfo(torch.bfloat16).min)
    return {form: _error(_read(attention, inputs["states"], inputs["memory"], bias, form), expected) for form in FORMS}


def test_features_keep_the_bits_of_scores() -> None:
    (errors,) = run_on_ranks(_errors_of_great_scores, 1)
    assert errors["explicit"] < 0.02
    assert errors["feature"] < 0.02
    assert errors["mask"] > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_features_add_up_to_the_bias(dtype: torch.dtype) -> None:
    scores = torch.randn(NUM_SOURCES, NUM_TEXTS, generator=torch.Generator().manual_seed(1)).mul(10)
    bias = _key_bias(scores, 40, torch.finfo(dtype).min)
    empty = torch.zeros(40, NUM_SOURCES, 2, 12, dtype=dtype)
    (key, value), query = add_key_features(empty, empty, bias, 0.3), add_query_features(empty)
    assert key.shape == value.shape == query.shape == (40, NUM_SOURCES, 2, 16)
    sums = (key.double() * query.double()).sum(3) * 0.3
    expected = (bias.double() - bias.double().amax(3, keepdim=True))[:, 0, 0].t()[..., None].expand_as(sums)
    is_score = expected > torch.finfo(dtype).min / 2
    torch.testing.assert_close(sums[is_score], expected[is_score], rtol=1e-6, atol=1e-6)
    assert (sums[~is_score] < -1000).all()
    # in the precision in which kernels sum, before they scale; a block of keys that are all hidden must not be NaN
    assert (key.float() * query.float()).sum(3).isfinite().all()


@torch.no_grad()
def _dropped(topology: ProcessTopology) -> dict[str, Tensor]:
    """Outputs with half of the weights dropped, by the same draws in each form."""
    inputs = _inputs(40, 16, torch.float32)
    bias = _key_bias(inputs["scores"], 40, torch.finfo(torch.float32).min)
    attention = _attention(topology, inputs, 16, 1.0).train()
    outputs = {"none": _read(attention, inputs["states"], inputs["memory"], bias, "mask")}
    attention.core_attention.dropout = 0.5
    for form in FORMS:
        seed_dropout(1, topology.tp_rank)
        outputs[form] = _read(attention, inputs["states"], inputs["memory"], bias, form)
    return outputs


def test_dropout_in_each_form() -> None:
    (outputs,) = run_on_ranks(_dropped, 1)
    for form in FORMS:
        torch.testing.assert_close(outputs[form], outputs["explicit"], rtol=1e-5, atol=1e-5, msg=form)
        assert (outputs[form] - outputs["none"]).abs().max() > 0.1


@torch.no_grad()
def _answers(topology: ProcessTopology) -> dict[str, Tensor]:
    """What beams write in each form, from the same texts with scores, and from texts whose scores are turned round."""
    texts, is_real = random_texts(6, 21, seed=5), torch.tensor([[True, True, True], [True, False, True]])
    scores = torch.tensor([[0.0, -4.0, -9.0], [-6.0, 0.0, -1.0]])
    found = {}
    for form in FORMS:
        model = T5(_shape(16), topology, seed=3).eval()
        for layer in model.decoder.layers:
            layer.cross_attention.linear_proj.weight.mul_(4)  # what is read must matter
        reader = FusionReader(model, FusionEncodeConfig(score_attention=form))
        assert reader.score_form == form
        for name, own in (("scored", scores), ("turned", scores.flip(1))):
            search = GenerationConfig(num_beams=3, max_answer_length=9)
            answers = generate(
                EncodedSources(model, reader.encode(texts, is_real, own)), search, topology.groups.tp
            ).best
            found[f"{name}, {form}"] = answers.ids
    return found


@pytest.mark.parametrize("tp_size", [1, 2])
def test_answers_are_the_same_in_each_form(tp_size: int) -> None:
    for found in run_on_ranks(_answers, tp_size, tensor_model_parallel_size=tp_size):
        for form in FORMS:
            for name in ("scored", "turned"):
                assert torch.equal(found[f"{name}, {form}"], found[f"{name}, explicit"]), f"{name}, {form}"
        assert not torch.equal(found["scored, mask"], found["turned, mask"])


def test_which_form_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda, asked = torch.device("cpu"), torch.device("cuda", 0), []

    def takes(device: torch.device, dtype: torch.dtype, width: int) -> bool:
        asked.append((device, dtype, width))
        return width <= 256

    monkeypatch.setattr(score_attention, "_flash_takes", takes)
    assert choose_form("auto", cpu, torch.bfloat16, 64) == "mask"
    assert not asked
    assert choose_form("auto", cuda, torch.bfloat16, 64) == "feature"
    assert choose_form("auto", cuda, torch.bfloat16, 256) == "mask"
    assert asked == [(cuda, torch.bfloat16, 72), (cuda, torch.bfloat16, 264)]
    for form in FORMS:
        assert choose_form(form, cuda, torch.bfloat16, 64) == choose_form(form, cpu, torch.float32, 64) == form
