"""Hugging Face's `BertForMaskedLM`: one folder with an encoder, the head over it, and a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.bert import (
    bert_config_from_hf,
    bert_config_to_hf,
    current_names,
    export_bert,
    import_bert,
)
from megatron_retrieval.checkpoint.huggingface.files import (
    read_settings,
    read_vocabulary,
    read_weights,
    write_vocabulary,
    write_weights,
)
from megatron_retrieval.checkpoint.kinds.description import wordpiece_asset
from megatron_retrieval.checkpoint.kinds.masked_lm import KIND, masked_lm_checkpoint_config
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.files import atomic_directory, write_json

PREFIX = "cls.predictions."
WORD_EMBEDDINGS = "embedding.word_embeddings.weight"
# ours -> theirs, under `head.` and under `PREFIX`
HEAD = {
    "dense.weight": "transform.dense.weight",
    "dense.bias": "transform.dense.bias",
    "norm.weight": "transform.LayerNorm.weight",
    "norm.bias": "transform.LayerNorm.bias",
    "bias": "bias",
}
# copies of other tensors, which some releases save and others leave out
DECODER_WEIGHT, DECODER_BIAS = "decoder.weight", "decoder.bias"


@dataclass(frozen=True)
class ForeignMaskedLM:
    """A masked language model on its way between formats.

    Attributes:
        weights: full fp32 tensors under `MaskedLanguageModel`'s parameter names.
        vocabulary: WordPiece tokens in order of their ids.
        lower_case: whether the vocabulary expects lower-cased text.
    """

    config: BertConfig
    weights: Mapping[str, Tensor]
    vocabulary: tuple[str, ...]
    lower_case: bool

    @property
    def kind(self) -> str:
        """Of the checkpoint that it becomes."""
        return KIND

    def checkpoint_config(self) -> dict[str, Any]:
        """The settings in that checkpoint's manifest."""
        return masked_lm_checkpoint_config(self.config, self.lower_case)

    def assets(self) -> dict[str, bytes]:
        """The further files of that checkpoint."""
        return wordpiece_asset(self.vocabulary)

    def empty_model(self, topology: ProcessTopology) -> MaskedLanguageModel:
        """A model for these weights."""
        return MaskedLanguageModel(self.config, topology)


def read_masked_lm(folder: Path) -> ForeignMaskedLM:
    """Import a `BertForMaskedLM`, or the masked LM of a `BertForPreTraining`.

    Raises:
        CheckpointError: files or weights are missing or damaged, or the model computes something that this project
            does not.
    """
    config = bert_config_from_hf(read_settings(folder / "config.json"), folder / "config.json")
    state = read_weights(folder)
    encoder = import_bert(state, config, folder)
    head = _import_head(state, encoder[WORD_EMBEDDINGS], folder)
    vocabulary, lower_case = read_vocabulary(folder, config.vocab_size)
    weights = {f"bert.{name}": full for name, full in encoder.items()}
    weights |= {f"head.{name}": full for name, full in head.items()}
    return ForeignMaskedLM(config, weights, vocabulary, lower_case)


def write_masked_lm(model: ForeignMaskedLM, output: Path) -> None:
    """Export a masked language model to the new folder `output`, which appears whole or not at all.

    Raises:
        DataError: `output` exists already.
    """
    encoder = {name.removeprefix("bert."): full for name, full in model.weights.items() if name.startswith("bert.")}
    state = {f"bert.{name}": full for name, full in export_bert(encoder, model.config).items()}
    state |= {f"{PREFIX}{theirs}": model.weights[f"head.{ours}"] for ours, theirs in HEAD.items()}
    settings = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "tie_word_embeddings": True}
    with atomic_directory(output) as folder:
        write_json(folder / "config.json", {**bert_config_to_hf(model.config), **settings, "dtype": "float32"})
        write_vocabulary(folder, model.vocabulary, model.lower_case, model.config.max_position_embeddings)
        write_weights(folder, state)


def _import_head(state: Mapping[str, Tensor], word_embeddings: Tensor, source: Path) -> dict[str, Tensor]:
    """The head's tensors under our names."""
    theirs = {
        name.removeprefix(PREFIX): tensor.float()
        for name, tensor in current_names(state).items()
        if name.startswith(PREFIX)
    }
    if not theirs:
        raise CheckpointError(f"{source}: holds no head of a masked LM; import its encoder with --format hf-bert.")
    decoder, bias = theirs.pop(DECODER_WEIGHT, word_embeddings), theirs.pop(DECODER_BIAS, None)
    if not torch.equal(decoder, word_embeddings):
        raise CheckpointError(
            f"{source}: {PREFIX}{DECODER_WEIGHT} is not the matrix of word embeddings; only models that share the two "
            "(tie_word_embeddings) can be imported."
        )
    if bias is not None and not torch.equal(theirs.setdefault("bias", bias), bias):
        raise CheckpointError(f"{source}: {PREFIX}bias and {PREFIX}{DECODER_BIAS} differ; they are one vector.")
    if difference := sorted(theirs.keys() ^ set(HEAD.values())):
        fault = "has no place in the head of a masked LM" if difference[0] in theirs else "is missing"
        raise CheckpointError(f"{source}: the weight {PREFIX}{difference[0]} {fault}.")
    return {ours: theirs[name] for ours, name in HEAD.items()}
