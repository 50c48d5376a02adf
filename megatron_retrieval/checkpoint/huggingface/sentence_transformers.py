"""One tower in one folder of sentence-transformers: Transformer, Pooling, and optionally Dense and Normalize."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.files import (
    read_optional_settings,
    read_settings,
    read_weights,
    write_weights,
)
from megatron_retrieval.checkpoint.huggingface.tower_folder import (
    TowerFolder,
    assemble_tower,
    take_projection,
    write_common,
)
from megatron_retrieval.checkpoint.huggingface.towers import TowerFormat
from megatron_retrieval.checkpoint.kinds.encoder_families import BERT, ENCODER_FAMILIES
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.utils.files import read_json, write_json
from megatron_retrieval.utils.logging import get_logger

CHAINS = [
    ["Transformer", "Pooling", *dense, *normalize] for dense in ([], ["Dense"]) for normalize in ([], ["Normalize"])
]
IDENTITY = "torch.nn.modules.linear.Identity"
# releases before 6 spell the two supported modes as flags
POOLING_FLAGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}

logger = get_logger("checkpoint")


def read_sentence_transformer(folder: Path) -> TowerFolder:
    """Transformer, pooling, and optionally a linear layer and normalisation."""
    modules = _read_modules(folder)
    body = modules["Transformer"]
    encoder = _read_encoder(body / "config.json")
    config = DualEncoderConfig(
        encoder=encoder,
        pooling=_read_pooling(modules["Pooling"] / "config.json"),
        normalize_embeddings="Normalize" in modules,
    )
    projection: dict[str, Tensor] = {}
    if "Dense" in modules:
        projection = _read_dense(modules["Dense"])
        config = dataclasses.replace(config, biencoder_projection_dim=projection["weight"].size(0))
    _check_text_handling(folder, body)
    return assemble_tower(
        body, config, _sentence_text_format(body, encoder), read_weights(body), projection, extras_from=folder
    )


def write_sentence_transformer(folder: Path, tower: TowerFolder, role: str) -> None:
    """A folder that `SentenceTransformer` opens."""
    config = tower.config
    write_common(folder, tower, {})
    write_weights(folder, tower.encoder_state())
    chain = ["Transformer", "Pooling"] + ["Dense"] * bool(config.biencoder_projection_dim)
    chain += ["Normalize"] * config.normalize_embeddings
    paths = ["" if kind == "Transformer" else f"{number}_{kind}" for number, kind in enumerate(chain)]
    for path in paths:
        (folder / path).mkdir(exist_ok=True)
    modules = zip(chain, paths, strict=True)
    write_json(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (kind, path) in enumerate(modules)
        ],
    )
    length = tower.text_format.retriever_seq_length
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    modes = {"pooling_mode_cls_token": config.pooling == "cls", "pooling_mode_mean_tokens": config.pooling == "mean"}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": config.encoder.hidden_size, **modes})
    if config.biencoder_projection_dim:
        sizes = {"in_features": config.encoder.hidden_size, "out_features": config.biencoder_projection_dim}
        write_json(folder / "2_Dense" / "config.json", {**sizes, "bias": True, "activation_function": IDENTITY})
        write_weights(folder / "2_Dense", tower.projection("linear"))


def _read_encoder(path: Path) -> EncoderShape:
    """The shape of the Transformer, of the family that its model_type names; what names none is read as a BERT."""
    settings = read_settings(path)
    families = {family.model_type: family for family in ENCODER_FAMILIES.values()}
    return families.get(str(settings.get("model_type")), BERT).from_huggingface(settings, path)


def _read_modules(folder: Path) -> dict[str, Path]:
    """The folders of the modules, by the last part of their class's name."""
    path = folder / "modules.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no modules.json here; is it a sentence-transformers folder?")
    listing = read_json(path)
    try:
        modules = {module["type"].rsplit(".", 1)[-1]: folder / module["path"] for module in listing}
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: expected a list of modules with type and path.") from error
    if list(modules) not in CHAINS or len(modules) != len(listing):
        raise CheckpointError(
            f"{path}: modules {', '.join(modules)}; only Transformer, Pooling, and optionally Dense and Normalize, in "
            "this order, can be imported."
        )
    return modules


def _read_pooling(path: Path) -> Literal["cls", "mean"]:
    settings = read_settings(path)
    flags = [name for name, is_on in settings.items() if name.startswith("pooling_mode_") and is_on is True]
    modes = settings.get("pooling_mode") or [POOLING_FLAGS.get(flag, flag) for flag in flags]
    if modes in ("cls", ["cls"]):
        return "cls"
    if modes in ("mean", ["mean"]):
        return "mean"
    raise CheckpointError(f"{path}: pooling {modes}; only cls or mean can be imported.")


def _read_dense(folder: Path) -> dict[str, Tensor]:
    settings = read_settings(folder / "config.json")
    if (activation := settings.get("activation_function")) != IDENTITY:
        raise CheckpointError(f"{folder}: activation {activation}; only a linear projection can be imported.")
    projection = take_projection(read_weights(folder), "linear")
    if projection.keys() != {"weight", "bias"}:
        raise CheckpointError(f"{folder}: a projection with weight and bias is needed.")
    return projection


def _check_text_handling(folder: Path, body: Path) -> None:
    """Refuse what would change the text before it reaches the tokenizer; say where the user must act."""
    sentence = read_optional_settings(body / "sentence_bert_config.json")
    if sentence.get("do_lower_case"):
        raise CheckpointError(f"{body}/sentence_bert_config.json: do_lower_case is not supported.")
    prompts = read_optional_settings(folder / "config_sentence_transformers.json").get("prompts") or {}
    if used := {name: text for name, text in prompts.items() if text}:
        logger.warning("%s: the model was trained with prompts %s, which are not imported.", folder, used)


def _sentence_text_format(body: Path, encoder: EncoderShape) -> TextFormatConfig:
    """Title and text in one segment, questions as long as passages."""
    length = (
        read_optional_settings(body / "sentence_bert_config.json").get("max_seq_length")
        or read_optional_settings(body / "tokenizer_config.json").get("model_max_length")
        or encoder.max_positions
        or TextFormatConfig().retriever_seq_length
    )
    length = min(length, encoder.max_positions or length)
    return TextFormatConfig(passage_format="title-text", query_seq_length=length, retriever_seq_length=length)


SENTENCE_TRANSFORMERS = TowerFormat(
    name="sentence-transformers",
    about="folder of sentence-transformers; a dual encoder",
    read_tower=read_sentence_transformer,
    write_tower=write_sentence_transformer,
)
