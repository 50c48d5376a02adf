"""PEFT's folder of a LoRA adapter: `adapter_config.json` and `adapter_model.safetensors`, read and written.

What the adapted matrices are called there follows from the table of the model's weights: an A and a B for each of
theirs, and for each of ours as many of both as it stands for. One that is not adapted has zeros, here and there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.files import check_settings, read_settings
from megatron_retrieval.checkpoint.huggingface.weight_files import read_safetensors, write_weights
from megatron_retrieval.checkpoint.huggingface.weight_table import WeightEntry, join_weights, some, split_weight
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.adapters import A as OUR_A
from megatron_retrieval.models.adapters import B as OUR_B
from megatron_retrieval.models.adapters import LoraConfig
from megatron_retrieval.utils.files import write_json

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B, WEIGHT = "base_model.model.", ".lora_A.weight", ".lora_B.weight", ".weight"
#: settings with which PEFT computes something else than `Adapter` does
REQUIRED_SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
}
#: settings that may be absent or empty
_EMPTY = ("rank_pattern", "alpha_pattern")


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The settings of a folder, and its tensors under the names of the adapted model's modules.

    Raises:
        CheckpointError: a file is missing or damaged, or it is no LoRA, or one that computes something else.
    """
    path = folder / CONFIG_NAME
    settings = read_settings(path)
    check_settings(settings, path, "a LoRA", required=REQUIRED_SETTINGS, needed=("peft_type", "r", "lora_alpha"))
    if patterns := [key for key in _EMPTY if settings.get(key)]:
        raise CheckpointError(f"{path}: {patterns[0]} gives linears different ones, which cannot be imported.")
    rank = settings["r"]
    # rank-stabilised LoRA divides alpha by the root of the rank
    alpha = settings["lora_alpha"] * (rank**0.5 if settings.get("use_rslora") else 1)
    config = LoraConfig(lora_rank=rank, lora_alpha=alpha, lora_dropout=settings.get("lora_dropout", 0.0))
    state = read_safetensors(folder / WEIGHTS_NAME)
    return config, {name.removeprefix(PREFIX): tensor.float() for name, tensor in state.items()}


def write_adapter(folder: Path, config: LoraConfig, state: Mapping[str, Tensor], base: str) -> None:
    """Write a folder that PEFT opens.

    Args:
        state: as `read_adapter` gives it.
        base: name of the base model, for whoever reads the folder.
    """
    settings = {
        **{key: value for key, value in REQUIRED_SETTINGS.items() if value is not None},
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": sorted({name.removesuffix(A) for name in state if name.endswith(A)}),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "task_type": None,
    }
    write_json(folder / CONFIG_NAME, settings)
    write_weights(folder, {PREFIX + name: tensor for name, tensor in state.items()}, WEIGHTS_NAME)


def export_adapters(full: Mapping[str, Tensor], table: Iterable[WeightEntry]) -> dict[str, Tensor]:
    """PEFT's tensors of all linears that have an adapter.

    Args:
        full: our tensors under our names.
        table: of the model's weights.
    """
    state: dict[str, Tensor] = {}
    for entry in table:
        ours = entry.ours.removesuffix(WEIGHT)
        if f"{ours}{OUR_A}" not in full:
            continue
        downs = full[f"{ours}{OUR_A}"].chunk(len(entry.theirs))
        for theirs, down, up in zip(entry.theirs, downs, split_weight(full[f"{ours}{OUR_B}"], entry), strict=True):
            if down.any() or up.any():
                state |= {theirs.removesuffix(WEIGHT) + A: down, theirs.removesuffix(WEIGHT) + B: up}
    return state


def import_adapters(
    state: Mapping[str, Tensor],
    table: Iterable[WeightEntry],
    rank: int,
    matrix: Callable[[str], Tensor],
    source: Path,
) -> dict[str, Tensor]:
    """The inverse of `export_adapters`.

    Args:
        matrix: gives a full matrix of ours, which the adapter must fit.

    Raises:
        CheckpointError: a tensor belongs to no matrix of the model, is missing, or has another shape.
    """
    left = dict(state)
    full: dict[str, Tensor] = {}
    for entry in table:
        names = [theirs.removesuffix(WEIGHT) for theirs in entry.theirs]
        if not any(name + end in left for name in names for end in (A, B)):
            continue
        shapes = [part.shape for part in split_weight(matrix(entry.ours), entry)]
        ups, downs = {}, []
        for theirs, name, (num_rows, width) in zip(entry.theirs, names, shapes, strict=True):
            downs.append(_take(left, name + A, (rank, width), has_other=name + B in left, source=source))
            ups[theirs] = _take(left, name + B, (num_rows, rank), has_other=name + A in state, source=source)
        ours = entry.ours.removesuffix(WEIGHT)
        full |= {f"{ours}{OUR_A}": torch.cat(downs), f"{ours}{OUR_B}": join_weights(entry, ups, source)}
    if left:
        raise CheckpointError(
            f"{source}: {len(left)} tensors have no place in the base, among them {some(sorted(left))}."
        )
    return full


def _take(left: dict[str, Tensor], name: str, shape: tuple[int, int], *, has_other: bool, source: Path) -> Tensor:
    """A tensor of an adapter, which is then used; zeros where the matrix has none."""
    if name not in left:
        if has_other:
            raise CheckpointError(f"{source}: {name} is missing.")
        return torch.zeros(shape)
    tensor = left.pop(name)
    if tensor.shape != shape:
        raise CheckpointError(f"{source}: {name} has the shape {list(tensor.shape)}, where {list(shape)} is needed.")
    return tensor
