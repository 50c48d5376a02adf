"""Runs imported dual encoders in processes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.formats import FORMATS, write_model
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.types.tokens import TokenBatch


def vectors_of_import(
    name: str, folders: Sequence[Path], queries: TokenBatch, passages: TokenBatch, *, tp_size: int = 1
) -> list[tuple[Tensor, Tensor]]:
    """Import on every rank and encode: per rank the vectors of questions and of passages."""
    args = (name, list(folders), queries.ids, queries.lengths, passages.ids, passages.lengths)
    return run_on_ranks(_encode, tp_size, *args, tensor_model_parallel_size=tp_size)


def _encode(topology: ProcessTopology, name: str, folders: list[Path], *batches: Tensor) -> tuple[Tensor, ...]:
    model = FORMATS[name].read(folders).build(topology).eval()
    with torch.no_grad():
        return model(TokenBatch(*batches[:2]), TokenBatch(*batches[2:]))


def re_export(name: str, folders: Sequence[Path], output: Path) -> Path:
    """Import and export again."""
    write_model(name, FORMATS[name].read(folders), output)
    return output
