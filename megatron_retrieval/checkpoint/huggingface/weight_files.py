"""The weight files of a foreign folder, whole or in parts, read without running anything that they name."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.files import read_settings
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.utils.files import open_binary

SAFETENSORS_NAME = "model.safetensors"
PICKLE_NAME = "pytorch_model.bin"
#: files that hold weights in a form that is not read here -> what they are, what can be done
_TO_PYTORCH = "open it with transformers and save_pretrained, or fetch the release's model.safetensors"
_UNREAD = {
    "tf_model.h5": ("TensorFlow weights", _TO_PYTORCH),
    "*.ckpt.index": ("a TensorFlow checkpoint", "convert it to PyTorch with transformers 4"),
    "flax_model.msgpack": ("Flax weights", _TO_PYTORCH),
    "*.onnx": ("an ONNX graph", "fetch the release's model.safetensors"),
    "adapter_config.json": ("a LoRA adapter alone", "give its base as well: --format peft --base CHECKPOINT"),
    "*.gguf": ("GGUF weights", "fetch the release's model.safetensors"),
    "consolidated.*.pth": ("weights of Llama's first format", "fetch the release's model.safetensors"),
}
_UNKNOWN_NAME = re.compile(r"(?:GLOBAL|global)\s+`?([A-Za-z_][\w.]*)")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's weight files.

    Raises:
        CheckpointError: there is none that can be read (files of other kinds are named), it is damaged, a part is
            missing, or it holds more than tensors.
        DataError: a Git LFS pointer stands in its place.
    """
    for name, read in ((SAFETENSORS_NAME, read_safetensors), (PICKLE_NAME, _read_state)):
        if (path := folder / name).is_file():
            return read(path)
        if (index := folder / f"{name}.index.json").is_file():
            # large models come in several files
            return {name: tensor for part in _parts(index) for name, tensor in read(part).items()}
    for pattern, (what, remedy) in _UNREAD.items():
        if found := sorted(folder.glob(pattern)):
            raise CheckpointError(f"{found[0]}: {what}, which cannot be imported; {remedy}.")
    raise CheckpointError(f"{folder}: holds neither {SAFETENSORS_NAME} nor {PICKLE_NAME}.")


def load_plain_pickle(path: Path) -> Any:
    """What `torch.save` wrote: tensors, numbers, strings, lists and dictionaries.

    Raises:
        CheckpointError: damaged, or it holds something else, which is named and not run.
        DataError: missing, or a Git LFS pointer.
    """
    open_binary(path).close()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as error:
        # torch's own text advises to run the pickle
        named = _UNKNOWN_NAME.search(str(error))
        problem = f"it holds {named[1]}, which is no tensor; nothing of it was run" if named else "damaged or cut off"
        raise CheckpointError(f"{path}: cannot be read: {problem}.") from error


def write_weights(folder: Path, state: Mapping[str, Tensor], name: str = SAFETENSORS_NAME) -> None:
    """Write tensors as a safetensors file; equal tensors may share memory."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name, {"format": "pt"})


def _parts(index: Path) -> list[Path]:
    """The files that an index names, each once; all in its folder."""
    weight_map = read_settings(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise CheckpointError(f"{index}: expected a weight_map from weights to files of this folder.")
    if missing := [name for name in sorted(names) if not (index.parent / name).is_file()]:
        raise CheckpointError(
            f"{index}: {len(missing)} of its {len(names)} files are missing, among them {missing[0]}."
        )
    return [index.parent / name for name in sorted(names)]


def _read_state(path: Path) -> dict[str, Tensor]:
    state = load_plain_pickle(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected a state dictionary, names with tensors.")
    return state


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file; for errors see `read_weights`."""
    open_binary(path).close()
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or cut off ({error}).") from error
