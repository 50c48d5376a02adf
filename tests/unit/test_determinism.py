"""--deterministic-mode: torch and the libraries are asked for fixed orders, and left as they were afterwards."""

from __future__ import annotations

import os

import pytest
import torch

from megatron_retrieval.parallel.determinism import deterministic_algorithms, is_deterministic
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology

NAMES = ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO")


def test_within_the_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user chose for a library stays."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    fills = torch.utils.deterministic.fill_uninitialized_memory
    with process_topology(ParallelConfig(device="cpu", deterministic_mode=True)):
        assert torch.are_deterministic_algorithms_enabled()
        assert is_deterministic()
        assert [os.environ[name] for name in NAMES] == [":4096:8", "Tree"]
    assert not is_deterministic()
    assert [os.environ.get(name) for name in NAMES] == [None, "Tree"]
    assert torch.utils.deterministic.fill_uninitialized_memory == fills
    with deterministic_algorithms(False):
        assert not is_deterministic()
