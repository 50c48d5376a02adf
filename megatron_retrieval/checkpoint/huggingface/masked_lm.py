"""Hugging Face's models for masked language modelling: a folder with an encoder, the head over it, and a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface import modernbert
from megatron_retrieval.checkpoint.huggingface.bert import current_names
from megatron_retrieval.checkpoint.huggingface.files import check_settings
from megatron_retrieval.checkpoint.huggingface.format import (
    ForeignModel,
    encoder_state,
    import_encoder,
    only_folder,
    read_family,
    read_vocabulary,
    write_vocabulary,
)
from megatron_retrieval.checkpoint.huggingface.weight_files import read_weights, write_weights
from megatron_retrieval.checkpoint.kinds.encoder_families import (
    BERT,
    DISTILBERT,
    ENCODER_FAMILIES,
    MODERNBERT,
    MPNET,
    ROBERTA,
    XLM_ROBERTA,
    EncoderFamily,
)
from megatron_retrieval.checkpoint.kinds.masked_lm import MASKED_LM
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.utils.files import write_json

WORD_EMBEDDINGS = "embedding.word_embeddings.weight"


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a family's model for masked language modelling has over the encoder.

    Attributes:
        architecture: name of the model.
        prefixes: what the names of its weights begin with.
        dense: theirs of our `dense`; `norm` likewise.
        decoder: a copy of the word embeddings, which some releases save and others leave out.
        bias: theirs of our `bias`; of it the decoder may have a copy.
        required: settings without which the head computes something else than ours.
    """

    architecture: str
    prefixes: tuple[str, ...]
    dense: str
    norm: str
    decoder: str
    bias: str
    required: Mapping[str, Any] = field(default_factory=dict)

    def names(self, shape: EncoderShape) -> dict[str, str]:
        """Our weights and theirs."""
        kinds = ("weight", "bias") if shape.head_biases else ("weight",)
        parts = {"dense": self.dense, "norm": self.norm}
        named = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in parts.items() for kind in kinds}
        return {**named, "bias": self.bias}


def _of_roberta(architecture: str) -> Head:
    return Head(
        architecture=architecture,
        prefixes=("lm_head.",),
        dense="lm_head.dense",
        norm="lm_head.layer_norm",
        decoder="lm_head.decoder",
        bias="lm_head.bias",
    )


#: by family
HEADS = {
    BERT.name: Head(
        architecture="BertForMaskedLM",
        prefixes=("cls.predictions.",),
        dense="cls.predictions.transform.dense",
        norm="cls.predictions.transform.LayerNorm",
        decoder="cls.predictions.decoder",
        bias="cls.predictions.bias",
    ),
    DISTILBERT.name: Head(
        architecture="DistilBertForMaskedLM",
        prefixes=("vocab_",),
        dense="vocab_transform",
        norm="vocab_layer_norm",
        decoder="vocab_projector",
        bias="vocab_projector.bias",
    ),
    ROBERTA.name: _of_roberta("RobertaForMaskedLM"),
    XLM_ROBERTA.name: _of_roberta("XLMRobertaForMaskedLM"),
    MPNET.name: _of_roberta("MPNetForMaskedLM"),
    MODERNBERT.name: Head(
        architecture="ModernBertForMaskedLM",
        prefixes=("head.", "decoder."),
        dense="head.dense",
        norm="head.norm",
        decoder="decoder",
        bias="decoder.bias",
        required=modernbert.HEAD_SETTINGS,
    ),
}


class MaskedLMFormat:
    """A `Format`: a model for masked language modelling, or that of a `BertForPreTraining`."""

    name = "hf-masked-lm"
    about = "...ForMaskedLM; a masked LM"

    def holds(self, kind: str, shape: Any) -> bool:
        """See Format."""
        return kind == MASKED_LM.name and ENCODER_FAMILIES.of(shape).name in HEADS

    def read(self, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignModel:
        """See Format."""
        folder = only_folder("a masked LM", folders, separate_towers)
        path = folder / "config.json"
        settings, family = read_family(path, (ENCODER_FAMILIES[name] for name in HEADS))
        check_settings(settings, path, "a masked LM", required=HEADS[family.name].required, needed=())
        shape = family.from_huggingface(settings, path)
        vocabulary = read_vocabulary(family.vocabulary, folder, shape.vocab_size)
        state = current_names(read_weights(folder))
        encoder = import_encoder(state, shape, folder)
        weights = {f"bert.{name}": full for name, full in encoder.items()}
        weights |= _import_head(state, encoder[WORD_EMBEDDINGS], shape, family, folder)
        return ForeignModel(MASKED_LM, shape, weights, vocabulary)

    def write(self, model: ForeignModel, folder: Path) -> None:
        """See Format."""
        family = ENCODER_FAMILIES.of(model.shape)
        head = HEADS[family.name]
        state = {family.inner_prefix + name: full for name, full in encoder_state(model.weights, model.shape).items()}
        state |= {theirs: model.weights[f"head.{ours}"] for ours, theirs in head.names(model.shape).items()}
        settings = {"architectures": [head.architecture], "tie_word_embeddings": True, "dtype": "float32"}
        write_json(folder / "config.json", {**family.to_huggingface(model.shape), **head.required, **settings})
        write_vocabulary(model.vocabulary, folder, model.shape.max_positions)
        write_weights(folder, state)


HF_MASKED_LM = MaskedLMFormat()


def _import_head(
    state: Mapping[str, Tensor], word_embeddings: Tensor, shape: EncoderShape, family: EncoderFamily, source: Path
) -> dict[str, Tensor]:
    """The head's tensors under our names."""
    head = HEADS[family.name]
    theirs = {name: tensor.float() for name, tensor in state.items() if name.startswith(head.prefixes)}
    if not theirs:
        raise CheckpointError(
            f"{source}: holds no head of a masked LM; import its encoder with --format hf-{family.name}."
        )
    decoder, copy = f"{head.decoder}.weight", f"{head.decoder}.bias"
    if not torch.equal(theirs.pop(decoder, word_embeddings), word_embeddings):
        raise CheckpointError(
            f"{source}: {decoder} is not the matrix of word embeddings; only models that share the two "
            "(tie_word_embeddings) can be imported."
        )
    bias = theirs.pop(copy, None) if copy != head.bias else None
    if bias is not None and not torch.equal(theirs.setdefault(head.bias, bias), bias):
        raise CheckpointError(f"{source}: {head.bias} and {copy} differ; they are one vector.")
    names = head.names(shape)
    if difference := sorted(theirs.keys() ^ set(names.values())):
        fault = "has no place in the head of a masked LM" if difference[0] in theirs else "is missing"
        raise CheckpointError(f"{source}: the weight {difference[0]} {fault}.")
    return {f"head.{ours}": theirs[name] for ours, name in names.items()}
