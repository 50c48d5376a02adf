"""The type that passages are encoded in: the device's fast one, unless a flag says otherwise."""

from __future__ import annotations

import pytest
import torch

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.retrieval import encode_batches as batches
from megatron_retrieval.retrieval.encode_batches import EncodePassagesConfig


@pytest.mark.parametrize(
    ("flags", "on_fast", "on_slow"),
    [
        ({}, torch.bfloat16, torch.float32),
        ({"fp32": True}, torch.float32, torch.float32),
        ({"fp16": True}, torch.float16, torch.float16),
        ({"bf16": True}, torch.bfloat16, torch.bfloat16),
    ],
)
def test_flags_win_over_the_device(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], on_fast: torch.dtype, on_slow: torch.dtype
) -> None:
    for is_fast, expected in ((True, on_fast), (False, on_slow)):
        monkeypatch.setattr(batches, "bf16_is_fast", lambda device, is_fast=is_fast: is_fast)
        assert EncodePassagesConfig(**flags).dtype_on(torch.device("cpu")) == expected


def test_one_type_at_most() -> None:
    with pytest.raises(ConfigError, match="--fp32 excludes"):
        EncodePassagesConfig(fp32=True, bf16=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        EncodePassagesConfig(bf16=True, fp16=True).dtype_on(torch.device("cpu"))
