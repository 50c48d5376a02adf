"""Late interaction in foreign folders, whatever their settings are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.format import (
    ForeignModel,
    import_encoder,
    read_family,
    read_vocabulary,
    write_vocabulary,
)
from megatron_retrieval.checkpoint.huggingface.sentence_transformers import check_text_handling
from megatron_retrieval.checkpoint.kinds.dual_encoder import text_format_within
from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES, EncoderFamily
from megatron_retrieval.checkpoint.kinds.late_interaction import LATE_INTERACTION
from megatron_retrieval.data.layouts.late import LateFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.late_interaction import LateInteractionConfig
from megatron_retrieval.tokenizers.huggingface import token_id
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils.files import write_json

#: the linear layer, here and there
LINEAR = "linear.weight"


def read_encoder(folder: Path, *families: EncoderFamily) -> tuple[Any, Vocabulary]:
    path = folder / "config.json"
    settings, family = read_family(path, families)
    shape = family.from_huggingface(settings, path)
    vocabulary = read_vocabulary(family.vocabulary, folder, shape.vocab_size)
    check_text_handling(folder, vocabulary)
    return shape, vocabulary


def late_layout(
    folder: Path,
    settings: Mapping[str, Any],
    names: Mapping[str, str],
    markers: Mapping[str, str],
    defaults: Mapping[str, str],
    encoder: Any,
    vocabulary: Vocabulary,
) -> LateFormatConfig:
    """The layout that a folder's settings name; what they leave out is ColBERT's."""
    given = {ours: settings[theirs] for ours, theirs in names.items() if settings.get(theirs) is not None}
    for ours, theirs in markers.items():
        token = settings.get(theirs)
        given[ours] = token_id(folder, vocabulary, defaults[ours] if token is None else token)
    layout = LateFormatConfig(**given)
    if layout.query_augmentation and vocabulary.special.mask is None:
        raise CheckpointError(f"{folder}: its vocabulary has no [MASK], with which questions are filled up.")
    return text_format_within(layout, encoder)


def late_model(
    folder: Path,
    encoder: Any,
    vocabulary: Vocabulary,
    layout: LateFormatConfig,
    state: Mapping[str, Tensor],
    linear: Tensor,
    assumed: Mapping[str, str],
) -> ForeignModel:
    weights = {f"bert.{name}": full for name, full in import_encoder(state, encoder, folder).items()}
    if linear.dim() != 2 or linear.size(1) != encoder.hidden_size:
        raise CheckpointError(
            f"{folder}: {LINEAR} is {list(linear.shape)}, over states of {encoder.hidden_size} units."
        )
    shape = LateInteractionConfig(encoder=encoder, colbert_dim=linear.size(0))
    weights |= {LINEAR: linear.float()}
    return ForeignModel(LATE_INTERACTION, shape, weights, vocabulary, layout, assumed)


def write_encoder(model: ForeignModel, folder: Path, settings: Mapping[str, Any]) -> None:
    """Configuration and vocabulary."""
    encoder = model.shape.encoder
    of_encoder = ENCODER_FAMILIES.of(encoder).to_huggingface(encoder)
    write_json(folder / "config.json", {**of_encoder, **settings, "dtype": "float32"})
    write_vocabulary(model.vocabulary, folder, encoder.max_positions)


def refuse_prefixes(layout: LateFormatConfig) -> None:
    if layout.query_prefix or layout.passage_prefix:
        raise CheckpointError("texts have prefixes, which none of the foreign formats of late interaction holds.")
