"""Hugging Face's `BertForMaskedLM`: one folder with an encoder, the head over it, and a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.bert import bert_config_from_hf, bert_config_to_hf, current_names
from megatron_retrieval.checkpoint.huggingface.files import read_model_settings
from megatron_retrieval.checkpoint.huggingface.format import (
    ForeignModel,
    export_encoder,
    import_encoder,
    only_folder,
    read_vocabulary,
    write_vocabulary,
)
from megatron_retrieval.checkpoint.huggingface.weight_files import read_weights, write_weights
from megatron_retrieval.checkpoint.kinds.masked_lm import MASKED_LM
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.utils.files import write_json

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


class MaskedLMFormat:
    """A `Format`: `BertForMaskedLM`, or the masked LM of a `BertForPreTraining`."""

    name = "hf-bert-mlm"
    about = "BertForMaskedLM; a masked LM"

    def holds(self, kind: str, shape: Any) -> bool:
        """See Format."""
        return kind == MASKED_LM.name

    def read(self, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignModel:
        """See Format."""
        folder = only_folder("a masked LM", folders, separate_towers)
        settings = read_model_settings(folder / "config.json", "bert")
        shape = bert_config_from_hf(settings, folder / "config.json")
        vocabulary = read_vocabulary(MASKED_LM.vocabulary(shape), folder, shape.vocab_size)
        state = read_weights(folder)
        encoder = import_encoder(state, shape, folder)
        head = _import_head(state, encoder[WORD_EMBEDDINGS], folder)
        weights = {f"bert.{name}": full for name, full in encoder.items()}
        weights |= {f"head.{name}": full for name, full in head.items()}
        return ForeignModel(MASKED_LM, shape, weights, vocabulary)

    def write(self, model: ForeignModel, folder: Path) -> None:
        """See Format."""
        encoder = {name.removeprefix("bert."): full for name, full in model.weights.items() if name.startswith("bert.")}
        state = {f"bert.{name}": full for name, full in export_encoder(encoder, model.shape).items()}
        state |= {f"{PREFIX}{theirs}": model.weights[f"head.{ours}"] for ours, theirs in HEAD.items()}
        settings = {"architectures": ["BertForMaskedLM"], "tie_word_embeddings": True, "dtype": "float32"}
        write_json(folder / "config.json", {**bert_config_to_hf(model.shape), **settings})
        write_vocabulary(model.vocabulary, folder, model.shape.max_positions)
        write_weights(folder, state)


HF_BERT_MLM = MaskedLMFormat()


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
