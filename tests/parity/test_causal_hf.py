"""Causal language models compute what Hugging Face's do, forwards and backwards, at any tensor-parallel size."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
import transformers
from foreign import re_export
from sentence_transformers import SentenceTransformer
from sentence_transformers import models as parts_of
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_retrieval.checkpoint.huggingface.causal import (
    ROPE,
    causal_config_from_hf,
    causal_config_to_hf,
    causal_names,
    causal_table,
)
from megatron_retrieval.checkpoint.huggingface.formats import FORMATS
from megatron_retrieval.checkpoint.huggingface.weight_table import export_weights, import_weights
from megatron_retrieval.errors import CheckpointError, ConfigError
from megatron_retrieval.models.causal_config import causal_engine_config
from megatron_retrieval.models.causal_lm import CausalConfig, CausalLM
from megatron_retrieval.models.rotary import frequencies
from megatron_retrieval.models.sharding import shard_of
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.retrieval.retriever import encode_questions
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe
from megatron_retrieval.testing.tiny_hf import CAUSAL, LLAMA_3_ROPE, attention_mask, random_batch, tiny_causal
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.tokenizers.vocabulary import SpecialIds
from megatron_retrieval.types.tokens import TokenBatch

State = dict[str, Tensor]


def _batch() -> TokenBatch:
    return random_batch(num_rows=5, num_tokens=14)


def _places(batch: TokenBatch) -> Tensor:
    return attention_mask(batch).flatten().nonzero()[:, 0]


def _run(topology: ProcessTopology, config: CausalConfig, full: State) -> tuple[Tensor, State]:
    """This rank's logits at all real tokens, and the gradients of their cross-entropy with shifted tokens."""
    model, batch = CausalLM(config, topology).eval(), _batch()
    for name, parameter in model.named_parameters():
        parameter.data.copy_(shard_of(full[name], parameter, topology.tp_rank, topology.tp_size))
    logits = model(batch, _places(batch))
    (logits.clamp(min=-1e4) * _weights(topology.tp_rank, logits.size(1))).sum().backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        parameter.data.copy_(parameter.grad)
        gradients[name] = gather_full(parameter, topology)
    return logits.detach(), gradients


def _weights(tp_rank: int, width: int) -> Tensor:
    """Of the logits of a rank in the loss; none for padding."""
    places = torch.arange(tp_rank * width, (tp_rank + 1) * width)
    return torch.sin(places.float()).masked_fill(places >= 300, 0)


def _run_all(
    topology: ProcessTopology, models: dict[str, tuple[CausalConfig, State]]
) -> dict[str, tuple[Tensor, State]]:
    return {name: _run(topology, config, full) for name, (config, full) in models.items()}


@pytest.mark.parametrize("tp_size", [1, 2])
def test_logits_and_gradients(tp_size: int) -> None:
    batch, models, expected = _batch(), {}, {}
    for name in CAUSAL:
        model = tiny_causal(name)
        config = causal_config_from_hf(model.config.to_dict(), "tiny")
        assert causal_config_from_hf(causal_config_to_hf(config, has_output=True), "tiny") == config
        state = causal_names(model.state_dict(), config, "tiny")
        models[name] = config, import_weights(state, causal_table(config), "tiny", "a causal language model")
        exported = export_weights(models[name][1], causal_table(config))
        assert exported.keys() == state.keys()
        assert all(torch.equal(exported[key], state[key]) for key in state)
        logits = model(batch.ids, attention_mask=attention_mask(batch)).logits.flatten(0, 1)[_places(batch)]
        (logits * _weights(0, 300)).sum().backward()
        theirs = causal_names({key: value.grad for key, value in model.named_parameters()}, config, "tiny")
        gradients = import_weights(theirs, causal_table(config), "tiny", "a causal language model")
        expected[name] = logits.detach(), gradients
    results = run_on_ranks(_run_all, tp_size, models, tensor_model_parallel_size=tp_size)
    for name, (logits, gradients) in expected.items():
        ours = torch.cat([result[name][0] for result in results], 1)[:, :300]
        torch.testing.assert_close(ours, logits, rtol=0, atol=1e-4)
        for result in results:
            for parameter, gradient in result[name][1].items():
                torch.testing.assert_close(gradient, gradients[parameter], rtol=1e-4, atol=1e-3)


def test_scaled_positions_are_those_of_llama() -> None:
    config = tiny_causal("llama, scaled").config
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    shape = causal_config_from_hf(config.to_dict(), "tiny")
    ours = frequencies(shape.head_width, shape.rotary_base, shape.rope_scaling_factor)
    torch.testing.assert_close(ours, expected)
    assert len((frequencies(shape.head_width, shape.rotary_base) / ours).round(decimals=4).unique()) == 3


def test_a_layout_that_does_not_fit_is_refused_with_those_that_do() -> None:
    config = CausalConfig(num_layers=1, vocab_size=128)
    with pytest.raises(ConfigError, match=r"2 does not divide the 3 groups of 9 attention heads .* choose 1 or 3"):
        causal_engine_config(dataclasses.replace(config, num_query_groups=3), 2, torch.float32)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "positions are scaled .linear."),
        ({"rope_scaling": {**LLAMA_3_ROPE, "low_freq_factor": 2.0}}, "positions are scaled .llama3."),
        ({"attention_bias": True}, "attention_bias is True; only False"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types has 'linear_attention'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
    ],
)
def test_what_is_computed_otherwise_is_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        causal_config_from_hf({**tiny_causal("llama").config.to_dict(), ROPE: None, **settings}, "tiny")


def test_a_folder_goes_in_and_out(tmp_path: Path) -> None:
    model = tiny_causal("qwen2")
    model.save_pretrained(tmp_path / "hf")
    write_byte_bpe(tmp_path / "hf")
    exported = re_export("hf-causal-lm", [tmp_path / "hf"], tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(exported)
    assert type(again) is type(model)
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert tokenizer("the tower")["input_ids"] == ByteBpeTokenizer(exported / "tokenizer.json").encode(["the tower"])[0]


@pytest.mark.parametrize(("name", "pooling"), [("qwen3", "lasttoken"), ("mistral", "mean")])
def test_embedders_go_through_sentence_transformers(tmp_path: Path, name: str, pooling: str) -> None:
    tiny_causal(name, with_output=False).save_pretrained(tmp_path / "hf")
    write_byte_bpe(tmp_path / "hf", ends_texts=True)
    parts = [parts_of.Transformer(str(tmp_path / "hf"), max_seq_length=40), parts_of.Pooling(32, pooling)]
    prompts = {"query": "Instruct: find the capital\nQuery:", "document": ""}
    model = SentenceTransformer(modules=parts, device="cpu", similarity_fn_name="cosine", prompts=prompts)
    model.save(str(tmp_path / "st"))
    texts = ["the tower stands in Paris", "did it? " * 30, "naïve", "who wrote"]
    expected = model.encode(texts, prompt_name="query", normalize_embeddings=True, convert_to_tensor=True)
    found = FORMATS["sentence-transformers"].read([tmp_path / "st"])
    assert (found.shape.pooling, found.layout.query_prefix) == (pooling.replace("token", ""), prompts["query"])
    with process_topology(ParallelConfig(device="cpu")) as topology:
        encode = found.build(topology).eval().encode_queries
        vectors = encode_questions(texts, found.vocabulary, found.layout, encode, device=topology.device)
    torch.testing.assert_close(vectors, expected, rtol=0, atol=2e-6)
    exported = re_export("sentence-transformers", [tmp_path / "st"], tmp_path / "out")
    again = SentenceTransformer(str(exported), device="cpu").encode(texts, prompt_name="query", convert_to_tensor=True)
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="first token of a causal language model sees no other"):
        dataclasses.replace(found.shape, pooling="cls")
    write_byte_bpe(tmp_path / "st")
    with pytest.raises(CheckpointError, match="writes no end token behind a text"):
        FORMATS["sentence-transformers"].read([tmp_path / "st"])


@pytest.mark.real_data
def test_smollm2() -> None:
    """A public checkpoint, where SMOLLM2_FOLDER names its folder; in float64, since logits of 40 leave either program
    an error of 1e-4 in float32."""
    folder = Path(os.environ.get("SMOLLM2_FOLDER", "SmolLM2-135M-Instruct"))
    if not folder.is_dir():
        pytest.skip(f"SMOLLM2_FOLDER names no folder of SmolLM2 ({folder} is not here)")
    texts = ["### Question:\nWho discovered radium?\n\n### Answer:\n", "Marie Skłodowska Curie, naïve 北京."]
    found, tokenizer = FORMATS["hf-causal-lm"].read([folder]), transformers.AutoTokenizer.from_pretrained(folder)
    ids = found.vocabulary.encode(texts)
    assert ids == tokenizer(texts)["input_ids"]
    assert found.vocabulary.decode(ids) == texts
    assert found.vocabulary.special == SpecialIds(begin=None, end=2, pad=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    batch = TokenBatch(torch.tensor([ids[0] * 3, (ids[1] * 9)[: 3 * len(ids[0])]]), torch.tensor([len(ids[0]) * 3] * 2))
    with process_topology(ParallelConfig(device="cpu")) as topology, torch.no_grad():
        places = torch.arange(batch.ids.numel())
        ours = found.build(topology).double().eval()(batch, places)[:, : found.shape.vocab_size]
        torch.testing.assert_close(ours, model(batch.ids).logits.flatten(0, 1).float(), rtol=0, atol=1e-4)
