"""Hugging Face's DPR: a `DPRQuestionEncoder` and a `DPRContextEncoder`, each a BERT with an optional projection."""

from __future__ import annotations

from pathlib import Path

from megatron_retrieval.checkpoint.huggingface.files import read_model_settings
from megatron_retrieval.checkpoint.huggingface.tower_folder import (
    TowerFolder,
    assemble_tower,
    take_projection,
    tower_vocabulary,
    write_common,
)
from megatron_retrieval.checkpoint.huggingface.towers import TowerFormat
from megatron_retrieval.checkpoint.huggingface.weight_files import read_weights, write_weights
from megatron_retrieval.checkpoint.kinds.dual_encoder import text_format_within
from megatron_retrieval.checkpoint.kinds.encoder_families import BERT, ENCODER_FAMILIES
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoderConfig

DPR_ARCHITECTURES = {"question_encoder": "DPRQuestionEncoder", "ctx_encoder": "DPRContextEncoder"}


def read_dpr(folder: Path) -> TowerFolder:
    """A `DPRQuestionEncoder` or a `DPRContextEncoder`."""
    settings = read_model_settings(folder / "config.json", "dpr", "bert")
    encoder = BERT.from_huggingface(settings, folder / "config.json")
    vocabulary = tower_vocabulary(folder, encoder)
    state = read_weights(folder)
    role = next((role for role in DPR_ARCHITECTURES if any(name.startswith(f"{role}.") for name in state)), "")
    if not role:
        raise CheckpointError(f"{folder}: weights of neither a DPR question encoder nor a DPR context encoder.")
    state = {name.removeprefix(f"{role}.").removeprefix("bert_model."): tensor for name, tensor in state.items()}
    projection = take_projection(state, "encode_proj")
    config = DualEncoderConfig(encoder=encoder, biencoder_projection_dim=settings.get("projection_dim", 0))
    text_format = text_format_within(TextFormatConfig(), encoder)
    return assemble_tower(folder, config, text_format, vocabulary, state, projection, role)


def write_dpr(folder: Path, tower: TowerFolder, role: str) -> None:
    """Raises CheckpointError where vectors are not [CLS] vectors of a BERT as they are: DPR knows nothing else."""
    if tower.config.pooling != "cls" or tower.config.normalize_embeddings:
        raise CheckpointError(
            "hf-dpr holds [CLS] vectors as they are, neither pooled otherwise nor normalised; export another format."
        )
    if ENCODER_FAMILIES.of(tower.config.encoder) is not BERT:
        raise CheckpointError("hf-dpr holds encoders of BERT's family alone; export another format.")
    settings = {"model_type": "dpr", "architectures": [DPR_ARCHITECTURES[role]]}
    write_common(folder, tower, {**settings, "projection_dim": tower.config.biencoder_projection_dim})
    state = {f"bert_model.{name}": tensor for name, tensor in tower.encoder_state().items()}
    state |= tower.projection("encode_proj")
    write_weights(folder, {f"{role}.{name}": tensor for name, tensor in state.items()})


HF_DPR = TowerFormat(
    name="hf-dpr",
    about="DPRQuestionEncoder with DPRContextEncoder; a dual encoder",
    read_tower=read_dpr,
    write_tower=write_dpr,
    is_pair=True,
)
