"""Hugging Face's models for sequence classification with one label, which are sentence-transformers' `CrossEncoder`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface import modernbert
from megatron_retrieval.checkpoint.huggingface.bert import current_names
from megatron_retrieval.checkpoint.huggingface.files import check_settings, read_optional_settings
from megatron_retrieval.checkpoint.huggingface.format import (
    ForeignModel,
    encoder_state,
    import_encoder,
    only_folder,
    read_family,
    read_vocabulary,
    write_vocabulary,
)
from megatron_retrieval.checkpoint.huggingface.sentence_transformers import (
    IDENTITY,
    SETTINGS_NAME,
    check_text_handling,
    longest_text,
)
from megatron_retrieval.checkpoint.huggingface.weight_files import read_weights, write_weights
from megatron_retrieval.checkpoint.kinds.cross_encoder import CROSS_ENCODER
from megatron_retrieval.checkpoint.kinds.encoder_families import (
    BERT,
    DISTILBERT,
    ENCODER_FAMILIES,
    MODERNBERT,
    MPNET,
    ROBERTA,
    XLM_ROBERTA,
)
from megatron_retrieval.data.layouts.pair import PairFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.cross_encoder import CrossEncoderConfig
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.utils.files import write_json


@dataclass(frozen=True)
class Head:
    """What a family's model for sequence classification has over the encoder.

    Attributes:
        architecture: name of the model.
        pooler: theirs of our `pooler`; `score` and `norm` likewise.
        norm: None: it has none.
        pooling: their setting of how a text's states are pooled; None: the first is taken.
        required: settings without which the head computes something else than ours.
    """

    architecture: str
    pooler: str
    score: str
    norm: str | None = None
    pooling: str | None = None
    required: Mapping[str, Any] = field(default_factory=dict)

    def names(self, shape: EncoderShape) -> dict[str, str]:
        """Our weights and theirs."""
        first = ("weight", "bias") if shape.head_biases else ("weight",)
        parts = [("pooler", self.pooler, first), ("score", self.score, ("weight", "bias"))]
        if self.norm is not None:
            parts.append(("pooler_norm", self.norm, first))
        return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs, kinds in parts for kind in kinds}


_OF_ROBERTA = "classifier.dense", "classifier.out_proj"
#: by family
HEADS = {
    BERT.name: Head("BertForSequenceClassification", "bert.pooler.dense", "classifier"),
    DISTILBERT.name: Head("DistilBertForSequenceClassification", "pre_classifier", "classifier"),
    ROBERTA.name: Head("RobertaForSequenceClassification", *_OF_ROBERTA),
    XLM_ROBERTA.name: Head("XLMRobertaForSequenceClassification", *_OF_ROBERTA),
    MPNET.name: Head("MPNetForSequenceClassification", *_OF_ROBERTA),
    MODERNBERT.name: Head(
        "ModernBertForSequenceClassification",
        "head.dense",
        "classifier",
        norm="head.norm",
        pooling="classifier_pooling",
        required=modernbert.HEAD_SETTINGS,
    ),
}


class CrossEncoderFormat:
    """A `Format`: a model for sequence classification with one label. Scores are its logits: the function that
    `CrossEncoder.predict` applies to them, a sigmoid unless the folder names another, changes no order."""

    name = "hf-cross-encoder"
    about = "...ForSequenceClassification with one label, CrossEncoder of sentence-transformers; a cross-encoder"

    def holds(self, kind: str, shape: Any) -> bool:
        """See Format."""
        if kind != CROSS_ENCODER.name or (name := ENCODER_FAMILIES.of(shape.encoder).name) not in HEADS:
            return False
        return HEADS[name].pooling is not None or shape.pooling == CrossEncoderConfig.pooling

    def read(self, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignModel:
        """See Format."""
        folder = only_folder("a cross-encoder", folders, separate_towers)
        path = folder / "config.json"
        settings, family = read_family(path, (ENCODER_FAMILIES[name] for name in HEADS))
        encoder, head = family.from_huggingface(settings, path), HEADS[family.name]
        check_settings(settings, path, "a cross-encoder", required=head.required, needed=())
        vocabulary = read_vocabulary(family.vocabulary, folder, encoder.vocab_size)
        check_text_handling(folder, vocabulary)
        if prompt := read_optional_settings(folder / SETTINGS_NAME).get("default_prompt_name"):
            raise CheckpointError(f"{folder / SETTINGS_NAME}: texts get the prompt {prompt!r}, which is not supported.")
        state = current_names(read_weights(folder))
        weights = _take_head(state, head, encoder, folder)
        weights |= {f"bert.{name}": full for name, full in import_encoder(state, encoder, folder).items()}
        length = longest_text(folder, encoder) or PairFormatConfig().pair_seq_length
        pooling = settings.get(head.pooling, CrossEncoderConfig.pooling) if head.pooling else CrossEncoderConfig.pooling
        shape = CrossEncoderConfig(encoder=encoder, pooling=pooling)
        return ForeignModel(CROSS_ENCODER, shape, weights, vocabulary, PairFormatConfig(pair_seq_length=length))

    def write(self, model: ForeignModel, folder: Path) -> None:
        """See Format; `CrossEncoder.predict` gives the scores of the export as they are."""
        shape = model.shape.encoder
        family = ENCODER_FAMILIES.of(shape)
        head = HEADS[family.name]
        state = {family.inner_prefix + name: full for name, full in encoder_state(model.weights, shape).items()}
        state |= {theirs: model.weights[ours] for ours, theirs in head.names(shape).items()}
        settings = {
            "architectures": [head.architecture],
            **head.required,
            **({} if head.pooling is None else {head.pooling: model.shape.pooling}),
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
            "sentence_transformers": {"activation_fn": IDENTITY},
            "dtype": "float32",
        }
        write_json(folder / "config.json", {**family.to_huggingface(shape), **settings})
        write_vocabulary(model.vocabulary, folder, model.layout.pair_seq_length)
        write_weights(folder, state)


HF_CROSS_ENCODER = CrossEncoderFormat()


def _take_head(state: dict[str, Tensor], head: Head, shape: EncoderShape, source: Path) -> dict[str, Tensor]:
    """Remove the head from `state`; its fp32 tensors under our names."""
    names = head.names(shape)
    if missing := [name for name in names.values() if name not in state]:
        raise CheckpointError(
            f"{source}: the weight {missing[0]} is missing; a cross-encoder is a {head.architecture}."
        )
    found = {ours: state.pop(theirs).float() for ours, theirs in names.items()}
    if found["score.weight"].shape != (1, shape.hidden_size):
        raise CheckpointError(f"{source}: {len(found['score.weight'])} labels; a cross-encoder has one, the score.")
    return found
