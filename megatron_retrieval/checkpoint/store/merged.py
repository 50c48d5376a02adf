"""The weights of a checkpoint as those of a plain model: adapters added to their matrices, four bits made numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.store.manifest import CheckpointManifest
from megatron_retrieval.checkpoint.store.reader import TensorReader
from megatron_retrieval.models.adapters import NF4, NF4_CODES, PARTS_KEY, A, B, saved_lora
from megatron_retrieval.models.nf4 import dequantise
from megatron_retrieval.models.row_parts import block_rows, place_in_part

_WEIGHT = ".weight"


class MergedWeights:
    """See TensorReader; it has the names of the model without adapters.

    What is read is what the model computed with, up to rounding: the sum of a matrix and its adapter is taken in fp32.
    """

    def __init__(self, folder: str | Path, manifest: CheckpointManifest) -> None:
        self._reader, self.folder = TensorReader(folder, manifest), Path(folder)
        self._stored = self._reader.names()
        self._settings = _settings_of_parts(self._reader, manifest)

    def names(self) -> set[str]:
        """Of all tensors, those of parts with the part's name before them."""
        matrices = {name.removesuffix(NF4_CODES) + _WEIGHT for name in self._stored if name.endswith(NF4_CODES)}
        return {name for name in self._stored if not name.endswith((A, B, *NF4))} | matrices

    def full(self, name: str) -> Tensor:
        """The full tensor `name`."""
        linear = name.removesuffix(_WEIGHT)
        if not name.endswith(_WEIGHT) or not self._stored & {linear + A, linear + NF4_CODES}:
            return self._reader.full(name)
        settings = next(found for prefix, found in self._settings.items() if name.startswith(prefix))
        parts = settings[PARTS_KEY].get(linear.rpartition(".")[2])
        if linear + NF4_CODES in self._stored:
            codes, magnitudes, scales, offsets = (self._reader.full(linear + ending) for ending in NF4)
            matrix = dequantise(codes, magnitudes, scales, offsets, tuple(parts or (len(codes),)))
        else:
            matrix = self._reader.full(name).float()
        if linear + A not in self._stored:
            return matrix
        down, up = self._reader.full(linear + A).float(), self._reader.full(linear + B).float()
        part, _ = place_in_part(len(up), tuple(parts or (len(up),)))
        scale = saved_lora(settings).scale
        return torch.addmm(matrix, block_rows(up, part, len(parts or (0,))), down, alpha=scale)


def _settings_of_parts(reader: TensorReader, manifest: CheckpointManifest) -> dict[str, Mapping[str, Any]]:
    """The settings that hold for tensors whose names begin in a certain way, the whole's last."""
    return {**{f"{name}.": part.manifest.config for name, part in reader.parts.items()}, "": manifest.config}
