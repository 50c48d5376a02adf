"""Runs imported dual encoders in processes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.formats import EncoderFormat, read_encoder, write_encoder
from megatron_retrieval.checkpoint.store.reader import fill_model
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.types.tokens import TokenBatch


def vectors_of_import(
    name: EncoderFormat, folders: Sequence[Path], queries: TokenBatch, passages: TokenBatch, *, tp_size: int = 1
) -> list[tuple[Tensor, Tensor]]:
    """Import on every rank and encode: per rank the vectors of questions and of passages."""
    args = (name, list(folders), queries.ids, queries.lengths, passages.ids, passages.lengths)
    return run_on_ranks(_encode, tp_size, *args, tensor_model_parallel_size=tp_size)


def _encode(
    topology: ProcessTopology, name: EncoderFormat, folders: list[Path], *batches: Tensor
) -> tuple[Tensor, ...]:
    encoder = read_encoder(name, folders)
    model = DualEncoder(encoder.config, topology).eval()
    fill_model(model, encoder.weights.keys(), encoder.weights.__getitem__, topology, source="the import")
    with torch.no_grad():
        return model(TokenBatch(*batches[:2]), TokenBatch(*batches[2:]))


def re_export(name: EncoderFormat, folders: Sequence[Path], output: Path) -> Path:
    """Import and export again."""
    write_encoder(name, read_encoder(name, folders), output)
    return output
