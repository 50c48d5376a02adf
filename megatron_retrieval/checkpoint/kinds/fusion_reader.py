"""Fusion readers in checkpoints: the weights of an encoder-decoder, with its vocabulary and the layout of what it
reads; and what a new one starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron_retrieval.checkpoint.kinds import t5
from megatron_retrieval.checkpoint.kinds.architectures import (
    BERT_ARCHITECTURE,
    KEY,
    Architecture,
    ReaderModel,
    Shape,
    saved_architecture,
)
from megatron_retrieval.checkpoint.kinds.bert_seq2seq import start_from_bert
from megatron_retrieval.checkpoint.kinds.description import (
    ModelDescription,
    open_model,
    saved_passage_scores,
    saved_settings,
)
from megatron_retrieval.checkpoint.kinds.starting_point import READER_STARTING_KINDS, describe_starting_point
from megatron_retrieval.checkpoint.store.manifest import read_manifest, resolve_checkpoint
from megatron_retrieval.checkpoint.store.reader import load_weights
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.vocabulary import Vocabulary

KIND = "fusion-reader"
#: what reads as it is
READABLE_KINDS = (t5.KIND, KIND)
#: what a fusion reader may start from; of the kinds of BERT, both encoder and decoder
STARTING_KINDS = (*READABLE_KINDS, *READER_STARTING_KINDS)


@dataclass(frozen=True)
class FusionReaderDescription(ModelDescription):
    """All of a saved reader, or of what one may start from, but its weights.

    Attributes:
        config: shape of the reader.
        layout: None where it has not been trained as a reader.
        passage_scores: what it does with the scores of passages; nothing where it was trained without a retriever.
    """

    architecture: Architecture
    config: Shape
    layout: FusionFormatConfig | None = None
    passage_scores: PassageScoreConfig = field(default_factory=PassageScoreConfig)

    def vocabulary(self) -> Vocabulary:
        """Open its vocabulary."""
        return self.open_vocabulary(self.architecture.vocabulary)

    def assets(self) -> dict[str, bytes]:
        """The files that a reader's checkpoint keeps of its vocabulary."""
        name = self.architecture.vocabulary_name
        return {name: (self.folder / name).read_bytes()}

    def reader_config(
        self, shape: Shape, layout: FusionFormatConfig, passage_scores: PassageScoreConfig | None = None
    ) -> dict[str, Any]:
        """What the manifest keeps of a reader of this architecture and vocabulary.

        Args:
            passage_scores: None where it was trained without a retriever.
        """
        of_vocabulary = {key: self.manifest.config[key] for key in self.architecture.vocabulary_keys}
        of_scores = {} if passage_scores is None else to_flat_dict(passage_scores)
        settings = {**to_flat_dict(shape), **to_flat_dict(layout), **of_scores}
        return {**settings, **of_vocabulary, KEY: self.architecture.name}


def describe_fusion_reader(path: str | Path, kinds: Collection[str] = (KIND,)) -> FusionReaderDescription:
    """Read a checkpoint's description without its weights.

    Raises:
        CheckpointError: no checkpoint here, or one of none of these kinds.
    """
    folder = resolve_checkpoint(path)
    manifest = read_manifest(folder)
    if manifest.kind in kinds and manifest.kind in READER_STARTING_KINDS:
        bert = describe_starting_point(folder, READER_STARTING_KINDS).bert
        return FusionReaderDescription(
            folder, manifest, BERT_ARCHITECTURE, BertSeq2SeqConfig(**dataclasses.asdict(bert))
        )
    architecture = saved_architecture(manifest, folder)
    found = open_model(folder, kinds, architecture.vocabulary_name, architecture.vocabulary_keys)
    shape = saved_settings(architecture.shape, found)
    layout = saved_settings(FusionFormatConfig, found) if found.kind == KIND else None
    return FusionReaderDescription(folder, manifest, architecture, shape, layout, saved_passage_scores(found))


def load_fusion_reader(
    description: FusionReaderDescription,
    tokenizer: Vocabulary,
    topology: ProcessTopology,
    dtype: torch.dtype = torch.float32,
) -> ReaderModel:
    """Build a saved reader's model at this topology, in evaluation mode.

    Args:
        tokenizer: the reader's own.
    """
    model = description.architecture.build(description.config, tokenizer, topology, dtype)
    load_weights(description.folder, description.manifest, model, topology)
    return model.eval()


def start_fusion_reader(start: FusionReaderDescription, model: ReaderModel, topology: ProcessTopology) -> None:
    """Give a new reader its first weights.

    Raises:
        CheckpointError: parameters or shapes differ; the message names the first of them.
    """
    if start.kind in READER_STARTING_KINDS and isinstance(model, BertSeq2Seq):
        start_from_bert(describe_starting_point(start.folder, READER_STARTING_KINDS), model, topology)
    else:
        load_weights(start.folder, start.manifest, model, topology)
