"""The mean of several models of one shape, weight by weight (Wortsman et al. 2022, Model soups, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.store.reader import TensorReader, fill_model
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.parallel.topology import ProcessTopology


def save_mean(sources: Sequence[AnyDescription], output: Path, topology: ProcessTopology) -> Path:
    """Write the mean of the models' weights as a checkpoint; shape, layout and vocabulary are those of the first.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: the models are not of one kind, or a weight is missing or of another shape.
    """
    first = sources[0]
    readers = [TensorReader(source.folder, source.manifest) for source in sources]
    names = readers[0].names()
    for source, reader in zip(sources, readers, strict=True):
        if source.kind is not first.kind or reader.names() != names:
            raise CheckpointError(f"{source.folder}: not the weights of {first.folder}, so that they have no mean.")

    def mean(name: str) -> Tensor:
        tensors = [reader.full(name) for reader in readers]
        if any(tensor.shape != tensors[0].shape for tensor in tensors):
            raise CheckpointError(f"{name}: of another shape in one of the models, so that they have no mean.")
        return torch.stack([tensor.float() for tensor in tensors]).mean(0)

    vocabulary = first.vocabulary()
    model = first.kind.build(first.shape, vocabulary.special, topology)
    fill_model(model, names, mean, topology, source="the mean")
    further = () if first.layout is None else (first.layout,)
    saved: Path = first.kind.save(output, model, topology, first.shape, vocabulary, *further)
    return saved
