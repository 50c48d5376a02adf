"""One tower of a dual encoder in a foreign folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.format import (
    encoder_state,
    import_encoder,
    read_vocabulary,
    write_vocabulary,
)
from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.data.layouts.sequences import TextFormatConfig, read_text_format, without_empty_prefixes
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils.files import read_json, write_json

EXTRAS_NAME = "megatron_retrieval.json"


@dataclass(frozen=True)
class TowerFolder:
    """What a folder says of one tower.

    Attributes:
        weights: full fp32 tensors under `Tower`'s parameter names.
        folder: for messages.
        role: question_encoder or ctx_encoder, where the format tells.
        assumed: settings that the folder does not state, each with what is taken.
    """

    config: DualEncoderConfig
    text_format: TextFormatConfig
    weights: dict[str, Tensor]
    vocabulary: Vocabulary
    folder: Path
    role: str = ""
    assumed: Mapping[str, str] = field(default_factory=dict)

    def encoder_state(self) -> dict[str, Tensor]:
        """The encoder's tensors under the names of its family's model in transformers."""
        return encoder_state(self.weights, self.config.encoder)

    def projection(self, prefix: str) -> dict[str, Tensor]:
        """The projection's tensors under another module's name; empty where there is none."""
        return {
            name.replace("projection", prefix): tensor
            for name, tensor in self.weights.items()
            if name.startswith("projection.")
        }


def tower_vocabulary(folder: Path, encoder: EncoderShape) -> Vocabulary:
    """The vocabulary in an encoder's folder, read before its weights; for errors see `read_vocabulary`."""
    return read_vocabulary(ENCODER_FAMILIES.of(encoder).vocabulary, folder, encoder.vocab_size)


def assemble_tower(
    folder: Path,
    config: DualEncoderConfig,
    text_format: TextFormatConfig,
    vocabulary: Vocabulary,
    state: Mapping[str, Tensor],
    projection: Mapping[str, Tensor],
    role: str = "",
    extras_from: Path | None = None,
    assumed: Mapping[str, str] = MappingProxyType({}),
) -> TowerFolder:
    """Put together what all formats share; the extras of an export win over a format's defaults.

    Args:
        assumed: see TowerFolder, where there are no such extras.
    """
    encoder = config.encoder
    weights = {f"bert.{name}": full for name, full in import_encoder(state, encoder, folder).items()}
    weights |= {f"projection.{name}": full for name, full in projection.items()}
    if (extras_path := (extras_from or folder) / EXTRAS_NAME).is_file():
        extras, assumed = read_json(extras_path), {}
        text_format = read_text_format(extras)
        config = dataclasses.replace(
            config, pooling=extras["pooling"], normalize_embeddings=extras["normalize-embeddings"]
        )
    return TowerFolder(config, text_format, weights, vocabulary, folder, role, assumed)


def write_common(folder: Path, tower: TowerFolder, settings: dict[str, Any]) -> None:
    """Write configuration, vocabulary and what the formats have no place for.

    Raises:
        CheckpointError: there is a norm behind the projection.
    """
    if tower.config.biencoder_projection_norm:
        raise CheckpointError("the encoder's projection has a norm, which none of the foreign formats holds.")
    encoder = tower.config.encoder
    of_encoder = ENCODER_FAMILIES.of(encoder).to_huggingface(encoder)
    write_json(folder / "config.json", {**of_encoder, **settings, "dtype": "float32"})
    write_vocabulary(tower.vocabulary, folder, tower.text_format.retriever_seq_length)
    vectors = {"pooling": tower.config.pooling, "normalize-embeddings": tower.config.normalize_embeddings}
    write_json(folder / EXTRAS_NAME, {**without_empty_prefixes(to_flat_dict(tower.text_format)), **vectors})


def take_projection(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove the linear layer `prefix` from `state`; its fp32 tensors by the names weight and bias."""
    names = [name for name in state if name.startswith(f"{prefix}.")]
    return {name.removeprefix(f"{prefix}."): state.pop(name).float() for name in names}
