"""The settings of a Hugging Face model folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.huggingface.weight_table import some
from megatron_retrieval.checkpoint.store.folders import MEGATRON_LM, is_megatron_lm
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.utils.files import read_json

MODEL_SETTINGS, ADAPTER_SETTINGS = "config.json", "adapter_config.json"
#: what a folder may say that makes its weights or its model something that is not proven equal
_FOREIGN_SETTINGS = {
    "auto_map": "the model brings code of its own",
    "quantization_config": "the weights are quantized",
}


def read_settings(path: Path) -> dict[str, Any]:
    """The contents of a JSON file that holds one object.

    Raises:
        CheckpointError: the file is missing, or holds something else.
        DataError: it is cut off or not JSON.
    """
    if path.parent.is_file():
        raise CheckpointError(
            f"{path.parent}: a file, where the folder of a model is expected; a checkpoint of DPR (.cp) comes in with "
            "--format dpr-checkpoint --input FILE FOLDER, FOLDER being that of the BERT which it started from."
        )
    if not path.is_file():
        if is_megatron_lm(path.parent):
            raise CheckpointError(f"{path.parent}: {MEGATRON_LM}")
        if path.name == MODEL_SETTINGS and (path.parent / ADAPTER_SETTINGS).is_file():
            raise CheckpointError(
                f"{path.parent}: holds {ADAPTER_SETTINGS}, but no {path.name}: LoRA adapters without the model that "
                "they belong to. Import that model first, then the adapters: --format peft --input FOLDER --base "
                "CHECKPOINT."
            )
        raise CheckpointError(f"{path.parent}: no {path.name} here; is it the folder of a model in this format?")
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: expected an object of settings.")
    return settings


def read_model_settings(path: Path, *model_types: str) -> dict[str, Any]:
    """The contents of a `config.json`, of a model of one of these types.

    Raises:
        CheckpointError: as `read_settings`, or it is of another type, or not what transformers computes by its type.
    """
    settings = read_settings(path)
    found = settings.get("model_type", model_types[0])
    if found not in model_types:
        choice = " or ".join(map(repr, model_types))
        raise CheckpointError(f"{path}: model_type is {found!r}; only {choice} can be imported here.")
    for key, meaning in _FOREIGN_SETTINGS.items():
        if settings.get(key):
            raise CheckpointError(f"{path}: it has {key}: {meaning}, which cannot be imported.")
    return settings


def read_optional_settings(path: Path) -> dict[str, Any]:
    """As `read_settings`; a missing file has no settings."""
    return read_settings(path) if path.is_file() else {}


def check_settings(
    settings: Mapping[str, Any], source: str | Path, what: str, *, required: Mapping[str, Any], needed: Iterable[str]
) -> None:
    """Refuse the settings of a model that computes something else than ours does.

    Args:
        source: where they come from, and
        what: what they should configure, for messages.
        required: settings that must have these values where they are given.
        needed: settings that must be given.

    Raises:
        CheckpointError: naming the first that is wrong, or what is missing.
    """
    for key, value in required.items():
        if settings.get(key, value) != value:
            raise CheckpointError(f"{source}: {key} is {settings[key]!r}; only {value!r} can be imported.")
    if missing := [key for key in needed if key not in settings]:
        raise CheckpointError(f"{source}: no configuration of {what}; {some(missing)} is missing.")
