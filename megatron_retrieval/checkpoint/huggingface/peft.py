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

from megatron_retrieval.checkpoint.huggingface.files import ADAPTER_SETTINGS, check_settings, read_settings
from megatron_retrieval.checkpoint.huggingface.weight_files import read_safetensors, write_weights
from megatron_retrieval.checkpoint.huggingface.weight_table import WeightEntry, join_weights, some, split_weight
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.adapters import A as OUR_A
from megatron_retrieval.models.adapters import B as OUR_B
from megatron_retrieval.models.adapters import LoraConfig
from megatron_retrieval.utils.files import write_json

WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX, A, B, WEIGHT = "base_model.model.", ".lora_A.weight", ".lora_B.weight", ".weight"
#: settings that must have these values
_REQUIRED: dict[str, Any] = {"peft_type": "LORA", "bias": "none"}
#: where A and B start over a base that stays as it is
INIT, _PLAIN_STARTS = "init_lora_weights", ("true", "false", "none", "gaussian", "orthogonal", "eva", "mica")
#: settings that are read or checked, that say which linears have adapters, or that matter at the start alone
_HARMLESS = {*_REQUIRED, INIT} | {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "qalora_group_size", "ensure_weight_tying"),
}


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The settings of a folder, and its tensors under the names of the adapted model's modules.

    Raises:
        CheckpointError: a file is missing or damaged, it is no LoRA, one that computes something else, or one over a
            base that PEFT altered; the message names the setting.
    """
    path = folder / ADAPTER_SETTINGS
    settings = read_settings(path)
    check_settings(settings, path, "a LoRA", required=_REQUIRED, needed=("peft_type", "r", "lora_alpha"))
    _check_variants(settings, path)
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
        **_REQUIRED,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": sorted({name.removesuffix(A) for name in state if name.endswith(A)}),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "task_type": None,
    }
    write_json(folder / ADAPTER_SETTINGS, settings)
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


def _check_variants(settings: Mapping[str, Any], path: Path) -> None:
    """Refuse what PEFT computes otherwise than `Adapter` does: over another base, or by a setting not known here."""
    if str(start := settings.get(INIT)).lower() not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{path}: {INIT} is {start!r}, which may alter the base before training, so that A and B fit no plain "
            "base. Save them with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...), or merge "
            "them first and import the merged model."
        )
    for key, value in settings.items():
        if value and key not in _HARMLESS:
            raise CheckpointError(
                f"{path}: {key} is {value!r}, with which PEFT computes something else than adapters here do. Merge the "
                "adapter into its model with PEFT's merge_and_unload, where it can, and import the merged model."
            )


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
