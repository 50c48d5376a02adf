"""Masked language models of other releases and of damaged folders; what they compute is in test_heads_hf.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.formats import FORMATS, write_model
from megatron_retrieval.checkpoint.huggingface.masked_lm import HF_MASKED_LM
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.testing.tiny_hf import (
    NUM_EMBEDDINGS,
    VOCABULARY,
    save_with_vocabulary,
    tiny_bert,
    tiny_masked_lm,
)

State = dict[str, Tensor]


def _save(folder: Path) -> Path:
    """A tiny `BertForMaskedLM` on disk."""
    save_with_vocabulary(tiny_masked_lm(), folder)
    return folder


def _change(folder: Path, change: Callable[[State], State]) -> Path:
    """Other weights in its place."""
    path = folder / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(load_file(path)).items()}, path)
    return folder


def test_an_export_has_its_tokenizer(tmp_path: Path) -> None:
    write_model("hf-masked-lm", HF_MASKED_LM.read([_save(tmp_path / "hf")]), tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (settings["architectures"], settings["tie_word_embeddings"]) == (["BertForMaskedLM"], True)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("W1").input_ids[1] == VOCABULARY.index("w1")


def _with_copies(state: State) -> State:
    word_embeddings, bias = state["bert.embeddings.word_embeddings.weight"], state["cls.predictions.bias"]
    return {**state, "cls.predictions.decoder.weight": word_embeddings, "cls.predictions.decoder.bias": bias}


def _with_the_copy_of_the_bias_alone(state: State) -> State:
    return {name.replace("predictions.bias", "predictions.decoder.bias"): tensor for name, tensor in state.items()}


def _with_old_names(state: State) -> State:
    for new, old in {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state


def _as_for_pretraining(state: State) -> State:
    extra = ("cls.seq_relationship.weight", "cls.seq_relationship.bias", "bert.pooler.dense.weight")
    return {**state, **{name: torch.zeros(2) for name in extra}}


@pytest.mark.parametrize(
    "variant", [_with_copies, _with_the_copy_of_the_bias_alone, _with_old_names, _as_for_pretraining]
)
def test_names_of_other_releases(tmp_path: Path, variant: Callable[[State], State]) -> None:
    folder = _save(tmp_path / "hf")
    expected = HF_MASKED_LM.read([folder]).weights
    imported = HF_MASKED_LM.read([_change(folder, variant)]).weights
    assert imported.keys() == expected.keys()
    assert all(torch.equal(imported[name], expected[name]) for name in expected)


def _untied(state: State) -> State:
    return {**state, "cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"] + 0.1}


def _two_biases(state: State) -> State:
    return {**state, "cls.predictions.decoder.bias": state["cls.predictions.bias"] + 0.1}


def _without_bias(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "cls.predictions.bias"}


def _with_more(state: State) -> State:
    return {**state, "cls.predictions.adapter": torch.zeros(1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_untied, "decoder.weight is not the matrix of word embeddings"),
        (_two_biases, "bias and cls.predictions.decoder.bias differ"),
        (_without_bias, "the weight cls.predictions.bias is missing"),
        (_with_more, "cls.predictions.adapter has no place in the head"),
    ],
)
def test_heads_that_compute_something_else_are_refused(
    tmp_path: Path, change: Callable[[State], State], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        HF_MASKED_LM.read([_change(_save(tmp_path / "hf"), change)])


def test_mismatched_input_is_refused(tmp_path: Path) -> None:
    save_with_vocabulary(tiny_bert(), tmp_path / "bert")
    with pytest.raises(CheckpointError, match="no head of a masked LM; import its encoder with --format hf-bert"):
        FORMATS["hf-masked-lm"].read([tmp_path / "bert"])
    folder = _save(tmp_path / "hf")
    with pytest.raises(CheckpointError, match="one --input folder"):
        FORMATS["hf-masked-lm"].read([folder, folder])
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or cut off"):
        FORMATS["hf-masked-lm"].read([folder])
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *map(str, range(NUM_EMBEDDINGS + 1 - len(special)))]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    with pytest.raises(CheckpointError, match="101 vocabulary entries, but only 100 word embeddings"):
        FORMATS["hf-masked-lm"].read([folder])
