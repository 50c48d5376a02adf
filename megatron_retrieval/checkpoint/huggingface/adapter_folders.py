"""Models with adapters, from and to PEFT's folders: one folder for a model, or one for each of two towers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megatron_retrieval.checkpoint.huggingface.format import ForeignModel
from megatron_retrieval.checkpoint.huggingface.peft import export_adapters, import_adapters, read_adapter, write_adapter
from megatron_retrieval.checkpoint.huggingface.t5 import t5_table
from megatron_retrieval.checkpoint.huggingface.towers import TOWER_FOLDERS
from megatron_retrieval.checkpoint.huggingface.weight_table import WeightEntry
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.registry import MODEL_KINDS, describe
from megatron_retrieval.checkpoint.store.base import BaseCheckpoint
from megatron_retrieval.checkpoint.store.merged import MergedWeights
from megatron_retrieval.checkpoint.store.reader import TensorReader, open_base
from megatron_retrieval.checkpoint.store.writer import save_checkpoint
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.adapters import A, B, LoraConfig, adapter_settings, add_adapters, freeze, linears
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.sharding import shard_of
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ProcessTopology


@dataclass(frozen=True)
class AdapterTable:
    """What the weights of a model, or of a part of it, are called in a folder of PEFT's.

    Attributes:
        folder: of this part; nothing where the model is one.
        ours: what our names begin with, in the place of which theirs begin with `theirs`.
        inner: what theirs begin with where the adapters were trained inside of a model with heads.
    """

    folder: str
    ours: str
    theirs: str
    inner: str
    entries: tuple[WeightEntry, ...]

    def ours_of(self, adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of this part, without the beginning of their names."""
        return {name.removeprefix(self.ours): w for name, w in adapters.items() if name.startswith(self.ours)}

    def theirs_of(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors of a folder, under the names in `entries`."""
        return {name.removeprefix(self.theirs).removeprefix(self.inner): tensor for name, tensor in state.items()}


def adapter_tables(kind: str, shape: Any) -> list[AdapterTable]:
    """The tables of a model; none: PEFT has no names for its weights.

    Args:
        kind: its name.
    """
    if isinstance(shape, T5Config):
        return [AdapterTable("", "", "", "", tuple(t5_table(shape)))]
    if kind == DUAL_ENCODER.name and not _is_fused(shape.encoder):
        is_shared = shape.biencoder_shared_query_context_model
        towers = {"shared": ""} if is_shared else TOWER_FOLDERS
        inner, entries = _encoder_table(shape.encoder)
        return [AdapterTable(folder, f"towers.{tower}.bert.", "", inner, entries) for tower, folder in towers.items()]
    part = MODEL_KINDS[kind].encoder_part(shape)
    if part is None or _is_fused(part.shape):
        return []
    inner, entries = _encoder_table(part.shape)
    return [AdapterTable("", part.prefix, inner, inner, entries)]


class PeftFormat:
    """A `Format`: the adapters of a model, without its base."""

    name = "peft"
    about = "LoRA adapters of PEFT, over the checkpoint that --base names"

    def holds(self, kind: str, shape: Any) -> bool:
        """See Format."""
        return bool(adapter_tables(kind, shape))

    def read(self, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignModel:
        """See Format; only `import_adapter` can."""
        raise CheckpointError(f"{folders[0]}: adapters alone are no model: give --base, what they adapt.")

    def write(self, model: ForeignModel, folder: Path) -> None:
        """See Format."""
        if not model.adapters.lora_rank:
            raise CheckpointError(f"the model has no adapters, which are all that {self.name} holds.")
        for table in adapter_tables(model.kind.name, model.shape):
            state = export_adapters(table.ours_of(model.weights), table.entries)
            (folder / table.folder).mkdir(exist_ok=True)
            named = {table.theirs + name: tensor for name, tensor in state.items()}
            write_adapter(folder / table.folder, model.adapters, named, model.base)


PEFT = PeftFormat()


def adapters_alone(found: AnyDescription) -> dict[str, Tensor]:
    """The adapters of a checkpoint, full tensors under our names.

    Raises:
        CheckpointError: training changed other weights as well, such as those of a head, which would be lost.
    """
    reader, base = TensorReader(found.folder, found.manifest), open_base(found.folder, found.manifest)
    if base is not None:
        for name in sorted(reader.own_names()):
            if name.endswith((A, B)):
                continue
            tensor = reader.full(name)
            if name not in base.names() or not torch.equal(base.full(name).to(tensor), tensor):
                raise CheckpointError(
                    f"{found.folder}: {name} was trained beside the adapters and has no place in a folder of PEFT's; "
                    "export the merged model in another --format."
                )
    return {name: reader.full(name) for name in reader.names() if name.endswith((A, B))}


def import_adapter(folders: Sequence[Path], base: Path, output: Path, topology: ProcessTopology) -> Path:
    """Turn PEFT's adapters into a checkpoint that refers to its base; all ranks call this together.

    Args:
        folders: one for a model, one that holds question_encoder and ctx_encoder, or both of them, questions first.
        base: checkpoint of the model that they adapt.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: they do not fit the base, or compute something else than adapters here do.
    """
    found = describe(base, MODEL_KINDS)
    if found.adapters.lora_rank:
        raise CheckpointError(f"{found.folder}: has adapters already; merge them first (merge checkpoints).")
    lora, weights = _read(folders, found)
    model = found.load(topology)
    names = {name for name, _ in linears(model) if f"{name}{A}" in weights}
    if others := {name.removesuffix(A) for name in weights if name.endswith(A)} - names:
        raise CheckpointError(f"{folders[0]}: adapts {min(others)}, which is no linear that takes adapters here.")
    targets = tuple(sorted({name.rpartition(".")[2] for name in names}))
    lora = dataclasses.replace(lora, lora_targets=targets, lora_base_dtype=found.adapters.lora_base_dtype)
    _fill(model, lora, weights, topology)
    settings = {**found.manifest.config, **adapter_settings(model, lora)}
    assets, shared = found.vocabulary().assets(), BaseCheckpoint(base)
    return save_checkpoint(output, model, topology, kind=found.kind.name, config=settings, assets=assets, base=shared)


def _read(folders: Sequence[Path], base: AnyDescription) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The settings of the adapters, and our tensors."""
    tables = adapter_tables(base.kind.name, base.shape)
    if not tables:
        raise CheckpointError(f"{base.folder}: PEFT has no names for the weights of this {base.kind.name}.")
    paths = list(folders) if len(folders) == len(tables) else [folders[0] / table.folder for table in tables]
    matrices, settings = MergedWeights(base.folder, base.manifest), []
    weights: dict[str, Tensor] = {}
    for path, table in zip(paths, tables, strict=True):
        lora, state = read_adapter(path)
        settings.append(lora)

        def matrix(name: str, prefix: str = table.ours) -> Tensor:
            return matrices.full(prefix + name)

        own = import_adapters(table.theirs_of(state), table.entries, lora.lora_rank or 0, matrix, path)
        weights |= {table.ours + name: tensor for name, tensor in own.items()}
    if settings[0] != settings[-1]:
        raise CheckpointError(f"{paths[0]} and {paths[-1]} have other ranks or factors; towers have the same.")
    return settings[0], weights


@torch.no_grad()
def _fill(model: nn.Module, lora: LoraConfig, weights: Mapping[str, Tensor], topology: ProcessTopology) -> None:
    """Put adapters beside the linears, whose matrices are as they are to be; zeros where a layer has none."""
    freeze(model, LoraConfig(), topology)
    add_adapters(model, lora, topology)
    for name, parameter in model.named_parameters():
        if ".adapter." in name:
            shard = torch.zeros_like(parameter)
            if name in weights:
                shard = shard_of(weights[name], parameter, topology.tp_rank, topology.tp_size)
            parameter.copy_(shard)


def _encoder_table(shape: EncoderShape) -> tuple[str, tuple[WeightEntry, ...]]:
    """What names begin with inside of a model with heads, and the table of the weights."""
    family = ENCODER_FAMILIES.of(shape)
    return family.inner_prefix, tuple(family.table(shape))


def _is_fused(shape: EncoderShape) -> bool:
    """Whether one matrix elsewhere is what has several adapters here."""
    return any(entry.num_stacked > 1 for entry in _encoder_table(shape)[1])
