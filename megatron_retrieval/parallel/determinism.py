"""Sums in a fixed order on GPUs, where backward passes and collectives otherwise add in whatever order threads come."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

#: read when the matrix library makes its workspace, and when the first collective makes a communicator
_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Within the block torch takes deterministic algorithms, and refuses operations that have none.

    What the user's environment says of the libraries stays. Layers that are built within the block follow, see
    `is_deterministic`.
    """
    if not wanted:
        yield
        return
    added = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    os.environ.update(added)
    torch.use_deterministic_algorithms(True)
    # it would fill tensors that are written in any case
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(False)
        for name in added:
            del os.environ[name]


def is_deterministic() -> bool:
    """Whether deterministic algorithms are wanted: torch does not refuse the gradient of an embedding, which adds in
    any order on GPUs."""
    return torch.are_deterministic_algorithms_enabled()
