"""One tower in one folder, as Hugging Face's BERT or as one of its DPR encoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.bert import (
    bert_config_from_hf,
    bert_config_to_hf,
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
from megatron_retrieval.checkpoint.kinds.dual_encoder import text_format_within
from megatron_retrieval.config.parser import from_flat_dict, to_flat_dict
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.utils.files import read_json, write_json

EXTRAS_NAME = "megatron_retrieval.json"
DPR_ARCHITECTURES = {"question_encoder": "DPRQuestionEncoder", "ctx_encoder": "DPRContextEncoder"}


@dataclass(frozen=True)
class TowerFolder:
    """What a folder says of one tower.

    Attributes:
        weights: full fp32 tensors under `Tower`'s parameter names.
        folder: for messages.
        role: question_encoder or ctx_encoder, where the format tells.
    """

    config: DualEncoderConfig
    text_format: TextFormatConfig
    weights: dict[str, Tensor]
    vocabulary: tuple[str, ...]
    lower_case: bool
    folder: Path
    role: str = ""

    @property
    def bert_weights(self) -> dict[str, Tensor]:
        """The encoder's tensors under `BertEncoder`'s names."""
        return {name.removeprefix("bert."): tensor for name, tensor in self.weights.items() if name.startswith("bert.")}

    def projection(self, prefix: str) -> dict[str, Tensor]:
        """The projection's tensors under another module's name; empty where there is none."""
        return {
            name.replace("projection", prefix): tensor
            for name, tensor in self.weights.items()
            if name.startswith("projection.")
        }


def read_bert(folder: Path) -> TowerFolder:
    """A `BertModel`. How it is pooled is not the format's concern: [CLS], unless the folder is an export."""
    settings = read_settings(folder / "config.json")
    bert = bert_config_from_hf(settings, folder / "config.json")
    return assemble_tower(
        folder, DualEncoderConfig(bert=bert), text_format_within(TextFormatConfig(), bert), read_weights(folder), {}
    )


def write_bert(folder: Path, tower: TowerFolder, role: str) -> None:
    """Raises CheckpointError where the tower has a projection: a `BertModel` has no place for it."""
    if tower.config.biencoder_projection_dim:
        raise CheckpointError("the encoder has a projection, which hf-bert cannot hold; export another format.")
    write_common(folder, tower, {"model_type": "bert", "architectures": ["BertModel"]})
    write_weights(folder, export_bert(tower.bert_weights, tower.config.bert))


def read_dpr(folder: Path) -> TowerFolder:
    """A `DPRQuestionEncoder` or a `DPRContextEncoder`."""
    settings = read_settings(folder / "config.json")
    bert = bert_config_from_hf(settings, folder / "config.json")
    state = read_weights(folder)
    role = next((role for role in DPR_ARCHITECTURES if any(name.startswith(f"{role}.") for name in state)), "")
    if not role:
        raise CheckpointError(f"{folder}: weights of neither a DPR question encoder nor a DPR context encoder.")
    state = {name.removeprefix(f"{role}.").removeprefix("bert_model."): tensor for name, tensor in state.items()}
    projection = take_projection(state, "encode_proj")
    config = DualEncoderConfig(bert=bert, biencoder_projection_dim=settings.get("projection_dim", 0))
    return assemble_tower(folder, config, text_format_within(TextFormatConfig(), bert), state, projection, role)


def write_dpr(folder: Path, tower: TowerFolder, role: str) -> None:
    """Raises CheckpointError where vectors are not [CLS] vectors as they are: DPR knows nothing else."""
    if tower.config.pooling != "cls" or tower.config.normalize_embeddings:
        raise CheckpointError("mean pooling and normalised vectors cannot be held by hf-dpr; export another format.")
    settings = {"model_type": "dpr", "architectures": [DPR_ARCHITECTURES[role]]}
    write_common(folder, tower, {**settings, "projection_dim": tower.config.biencoder_projection_dim})
    state = {f"bert_model.{n}": t for n, t in export_bert(tower.bert_weights, tower.config.bert).items()}
    state |= tower.projection("encode_proj")
    write_weights(folder, {f"{role}.{name}": tensor for name, tensor in state.items()})


def assemble_tower(
    folder: Path,
    config: DualEncoderConfig,
    text_format: TextFormatConfig,
    state: Mapping[str, Tensor],
    projection: Mapping[str, Tensor],
    role: str = "",
    extras_from: Path | None = None,
) -> TowerFolder:
    """Put together what all formats share; the extras of an export win over a format's defaults."""
    weights = {f"bert.{name}": full for name, full in import_bert(state, config.bert, folder).items()}
    weights |= {f"projection.{name}": full for name, full in projection.items()}
    vocabulary, lower_case = read_vocabulary(folder, config.bert.vocab_size)
    if (extras_path := (extras_from or folder) / EXTRAS_NAME).is_file():
        extras = read_json(extras_path)
        text_format = from_flat_dict(TextFormatConfig, extras)
        config = dataclasses.replace(
            config, pooling=extras["pooling"], normalize_embeddings=extras["normalize-embeddings"]
        )
    return TowerFolder(config, text_format, weights, vocabulary, lower_case, folder, role)


def write_common(folder: Path, tower: TowerFolder, settings: dict[str, Any]) -> None:
    """Write configuration, vocabulary and what the formats have no place for."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {**bert_config_to_hf(tower.config.bert), **settings, "dtype": "float32"})
    length = tower.text_format.retriever_seq_length
    write_vocabulary(folder, tower.vocabulary, tower.lower_case, length)
    vectors = {"pooling": tower.config.pooling, "normalize-embeddings": tower.config.normalize_embeddings}
    write_json(folder / EXTRAS_NAME, {**to_flat_dict(tower.text_format), **vectors})


def take_projection(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove the linear layer `prefix` from `state`; its fp32 tensors by the names weight and bias."""
    names = [name for name in state if name.startswith(f"{prefix}.")]
    return {name.removeprefix(f"{prefix}."): state.pop(name).float() for name in names}
