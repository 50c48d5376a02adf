"""The files of a Hugging Face model folder: weights and configuration."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.weight_table import some
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.utils.files import read_json

SAFETENSORS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_NAME = "pytorch_model.bin"


def read_settings(path: Path) -> dict[str, Any]:
    """The contents of a JSON file that holds one object.

    Raises:
        CheckpointError: the file is missing, or holds something else.
        DataError: it is cut off or not JSON.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: no {path.name} here; is it the folder of a model in this format?")
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: expected an object of settings.")
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


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's weight files, never through an unrestricted pickle.

    Raises:
        CheckpointError: there is none, it is damaged, or it holds more than tensors.
    """
    if (path := folder / SAFETENSORS_NAME).is_file():
        return _read_safetensors(path)
    if (index := folder / INDEX_NAME).is_file():
        # large models come in several files
        names = sorted(set(read_settings(index).get("weight_map", {}).values()))
        return {name: tensor for file in names for name, tensor in _read_safetensors(folder / file).items()}
    if not (path := folder / PICKLE_NAME).is_file():
        raise CheckpointError(f"{folder}: holds neither {SAFETENSORS_NAME} nor {PICKLE_NAME}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends early"
        raise CheckpointError(f"{path}: damaged, or not a plain state dictionary ({reason}).") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected a state dictionary, names with tensors.")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or cut off ({error}).") from error


def write_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as `model.safetensors`; equal tensors may share memory."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / SAFETENSORS_NAME, {"format": "pt"}
    )
