"""Readers that point to an answer, in folders of Hugging Face's: models for question answering, and DPR's reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.bert import current_names
from megatron_retrieval.checkpoint.huggingface.files import read_model_settings
from megatron_retrieval.checkpoint.huggingface.format import (
    ForeignModel,
    encoder_state,
    import_encoder,
    only_folder,
    read_family,
    read_vocabulary,
    write_vocabulary,
)
from megatron_retrieval.checkpoint.huggingface.sentence_transformers import check_text_handling
from megatron_retrieval.checkpoint.huggingface.tower_folder import EXTRAS_NAME
from megatron_retrieval.checkpoint.huggingface.weight_files import read_weights, write_weights
from megatron_retrieval.checkpoint.kinds.encoder_families import (
    BERT,
    DISTILBERT,
    ENCODER_FAMILIES,
    MPNET,
    ROBERTA,
    XLM_ROBERTA,
)
from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER
from megatron_retrieval.config.parser import from_flat_dict, to_flat_dict
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.lengths import within_positions
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.utils.files import read_json, write_json

#: our heads
_HEADS = ("span", "selection")


@dataclass(frozen=True, kw_only=True)
class PointingReaderFormat:
    """A `Format` of extractive readers.

    Exports carry `megatron_retrieval.json` with the layout of texts and the use of passages' scores. A head that their
    model does not have stands among its weights all the same, where they pass over it.

    Attributes:
        families: names of the families that it holds, each with the name of its model.
        prefix: what the names of the encoder's weights begin with; None: as in the family's models with heads.
        span, selection: theirs of our heads.
        model_type: what a config.json calls it; None: as its family.
        layout: of texts, and
        scores: the use of passages' scores, where the folder is no export.
    """

    name: str
    about: str
    families: Mapping[str, str]
    prefix: str | None = None
    span: str = "qa_outputs"
    selection: str
    model_type: str | None = None
    layout: ExtractiveFormatConfig
    scores: PassageScoreConfig

    def holds(self, kind: str, shape: Any) -> bool:
        """See Format."""
        return kind == EXTRACTIVE_READER.name and ENCODER_FAMILIES.of(shape).name in self.families

    def read(self, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignModel:
        """See Format."""
        folder = only_folder("a reader", folders, separate_towers)
        path = folder / "config.json"
        rows = [ENCODER_FAMILIES[name] for name in self.families]
        if self.model_type is None:
            settings, family = read_family(path, rows)
        else:
            settings, family = read_model_settings(path, self.model_type), rows[0]
        encoder = family.from_huggingface(settings, path)
        vocabulary = read_vocabulary(family.vocabulary, folder, encoder.vocab_size)
        check_text_handling(folder, vocabulary)
        state = current_names(read_weights(folder))
        weights = self._take_heads(state, encoder.hidden_size, folder)
        own = {name.removeprefix(self.prefix or ""): tensor for name, tensor in state.items()}
        weights |= {f"bert.{name}": full for name, full in import_encoder(own, encoder, folder).items()}
        layout, scores = within_positions(self.layout, encoder.max_positions), self.scores
        if (extras_path := folder / EXTRAS_NAME).is_file():
            extras = read_json(extras_path)
            layout = from_flat_dict(ExtractiveFormatConfig, extras)
            scores = from_flat_dict(PassageScoreConfig, extras)
        return ForeignModel(EXTRACTIVE_READER, encoder, weights, vocabulary, layout, further=(scores,))

    def write(self, model: ForeignModel, folder: Path) -> None:
        """See Format."""
        family = ENCODER_FAMILIES.of(model.shape)
        prefix = family.inner_prefix if self.prefix is None else self.prefix
        state = {prefix + name: full for name, full in encoder_state(model.weights, model.shape).items()}
        for ours, theirs in zip(_HEADS, (self.span, self.selection), strict=True):
            state |= {f"{theirs}.{kind}": model.weights[f"{ours}.{kind}"] for kind in ("weight", "bias")}
        settings = {**family.to_huggingface(model.shape), "architectures": [self.families[family.name]]}
        if self.model_type is not None:
            settings |= {"model_type": self.model_type, "projection_dim": 0}
        write_json(folder / "config.json", {**settings, "dtype": "float32"})
        write_vocabulary(model.vocabulary, folder, model.layout.reader_seq_length)
        write_weights(folder, state)
        write_json(
            folder / EXTRAS_NAME,
            {k: v for part in (model.layout, *model.further) for k, v in to_flat_dict(part).items()},
        )

    def _take_heads(self, state: dict[str, Tensor], width: int, source: Path) -> dict[str, Tensor]:
        """Remove the heads from `state`; their fp32 tensors under our names. Without a head for it, no passage is
        preferred."""
        if f"{self.span}.weight" not in state:
            raise CheckpointError(f"{source}: the weight {self.span}.weight is missing; is it a {self._models()}?")
        heads = {"selection.weight": torch.zeros(1, width), "selection.bias": torch.zeros(1)}
        for ours, theirs in zip(_HEADS, (self.span, self.selection), strict=True):
            for kind in ("weight", "bias"):
                if (name := f"{theirs}.{kind}") in state:
                    heads[f"{ours}.{kind}"] = state.pop(name).float()
        if heads["span.weight"].shape != (2, width):
            raise CheckpointError(f"{source}: {len(heads['span.weight'])} labels; a reader has two, start and end.")
        return heads

    def _models(self) -> str:
        return " or ".join(self.families.values())


HF_QUESTION_ANSWERING = PointingReaderFormat(
    name="hf-question-answering",
    about="...ForQuestionAnswering; an extractive reader",
    families={
        BERT.name: "BertForQuestionAnswering",
        DISTILBERT.name: "DistilBertForQuestionAnswering",
        ROBERTA.name: "RobertaForQuestionAnswering",
        XLM_ROBERTA.name: "XLMRobertaForQuestionAnswering",
        MPNET.name: "MPNetForQuestionAnswering",
    },
    selection="selection",
    layout=ExtractiveFormatConfig(reader_seq_length=384, passage_title=False),
    # it has no scores of passages: spans of all of them compete
    scores=PassageScoreConfig(passage_score_use="logit"),
)
HF_DPR_READER = PointingReaderFormat(
    name="hf-dpr-reader",
    about="DPRReader; an extractive reader",
    families={BERT.name: "DPRReader"},
    prefix="span_predictor.encoder.bert_model.",
    span="span_predictor.qa_outputs",
    selection="span_predictor.qa_classifier",
    model_type="dpr",
    layout=replace(ExtractiveFormatConfig(), passage_segment=False),
    scores=PassageScoreConfig(),
)
