"""Checkpoints that training may start from: dual encoders, masked language models, extractive readers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from megatron_retrieval.checkpoint.kinds import dual_encoder, extractive_reader, masked_lm
from megatron_retrieval.checkpoint.kinds.description import CheckpointDescription, open_checkpoint, saved_settings
from megatron_retrieval.checkpoint.kinds.dual_encoder import text_format_within
from megatron_retrieval.checkpoint.store.reader import TensorReader, fill_model
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.logging import get_logger

#: what a dual encoder, a masked language model, and an extractive reader may start from
STARTING_KINDS = (dual_encoder.KIND, masked_lm.KIND)
READER_STARTING_KINDS = (*STARTING_KINDS, extractive_reader.KIND)

log = get_logger("checkpoint")


@dataclass(frozen=True)
class StartingPoint(CheckpointDescription):
    """A checkpoint whose weights, shape and vocabulary training starts from.

    Attributes:
        bert: shape of its encoder.
        dual_encoder: shape of the whole where it is a dual encoder.
        text_format: layout of questions and passages where it is a dual encoder.
    """

    bert: BertConfig
    dual_encoder: DualEncoderConfig | None = None
    text_format: TextFormatConfig | None = None

    @property
    def tower(self) -> str | None:
        """Of a dual encoder, the tower whose encoder other models start from: the only one, or the passages'."""
        if self.dual_encoder is None:
            return None
        return "shared" if self.dual_encoder.biencoder_shared_query_context_model else "passage"

    @property
    def encoder_prefix(self) -> str:
        """What the names of the parameters of this encoder begin with."""
        return "bert." if self.tower is None else f"towers.{self.tower}.bert."

    @property
    def encoder_title(self) -> str:
        """What the log calls this encoder."""
        return "the encoder" if self.tower is None else f"the {self.tower} tower's encoder"

    def dual_encoder_over(self, default: DualEncoderConfig) -> DualEncoderConfig:
        """Shape of a dual encoder that starts here; what the checkpoint does not say is as in `default`."""
        return self.dual_encoder or dataclasses.replace(default, bert=self.bert)

    def text_format_over(self, default: TextFormatConfig) -> TextFormatConfig:
        """Its text layout, or else `default` with sequences no longer than the encoder's positions."""
        return self.text_format or text_format_within(default, self.bert)


def describe_starting_point(path: str | Path, kinds: Collection[str] = STARTING_KINDS) -> StartingPoint:
    """Read a checkpoint's description without its weights.

    Raises:
        CheckpointError: no checkpoint here, or one of none of these kinds.
    """
    found = open_checkpoint(path, kinds)
    if found.kind != dual_encoder.KIND:
        return StartingPoint(found.folder, found.manifest, saved_settings(BertConfig, found))
    whole, text_format = saved_settings(DualEncoderConfig, found), saved_settings(TextFormatConfig, found)
    return StartingPoint(found.folder, found.manifest, whole.bert, whole, text_format)


def load_starting_weights(
    start: StartingPoint, model: DualEncoder | MaskedLanguageModel | ExtractiveReader, topology: ProcessTopology
) -> None:
    """Fill `model` with what the checkpoint has of it; the rest keeps its initial weights, and the log says so.

    Between the kinds it is the encoder that travels: a masked language model's into every tower, and a dual encoder's
    passage (or only) tower into a masked language model or a reader. One shared tower may become two.

    Raises:
        CheckpointError: parameters or shapes differ; the message names the first of them.
    """
    reader = TensorReader(start.folder, start.manifest)
    parts = _parts_of_dual_encoder if isinstance(model, DualEncoder) else _parts_over_encoder
    for part, prefix in parts(start, model):
        _fill(part, prefix, reader, topology)


def _fill(part: nn.Module, prefix: str, reader: TensorReader, topology: ProcessTopology) -> None:
    """Fill a part of a model from the tensors whose names begin with `prefix`."""

    def full(name: str) -> Tensor:
        return reader.full(prefix + name)

    names = {name.removeprefix(prefix) for name in reader.names() if name.startswith(prefix)}
    source = f"{reader.folder}, {prefix.removesuffix('.')}" if prefix else str(reader.folder)
    fill_model(part, names, full, topology, source=source)


def _parts_over_encoder(start: StartingPoint, model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The parts of a model of one encoder with heads, each with the prefix of its parameters in the checkpoint."""
    own_kind = masked_lm.KIND if isinstance(model, MaskedLanguageModel) else extractive_reader.KIND
    if start.kind == own_kind:
        yield model, ""
    else:
        log.info("%s: %s is taken; the heads of the %s are new.", start.folder, start.encoder_title, own_kind)
        yield model.get_submodule("bert"), start.encoder_prefix


def _parts_of_dual_encoder(start: StartingPoint, model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """As `_parts_over_encoder`."""
    towers = dict(model.get_submodule("towers").named_children())
    if start.dual_encoder is None:
        log.info("%s: the masked LM's encoder goes into every tower; a projection is new.", start.folder)
        for tower in towers.values():
            yield tower.get_submodule("bert"), "bert."
    elif start.dual_encoder.biencoder_shared_query_context_model:
        for tower in towers.values():
            yield tower, "towers.shared."
    elif "shared" in towers:
        raise CheckpointError(
            f"{start.folder}: holds one encoder for questions and one for passages, which do not become one; leave "
            "out --biencoder-shared-query-context-model."
        )
    else:
        for name, tower in towers.items():
            yield tower, f"towers.{name}."
