"""The number format of a run: what flags name, or what this device is fast in."""

from __future__ import annotations

import pytest
import torch

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel import machine, precision
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.retrieval.encode_batches import EncodePassagesConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "on_fast", "on_slow"),
    [
        ({}, torch.bfloat16, torch.float32),
        ({"dtype": "fp16"}, torch.float16, torch.float16),
        ({"fp32": True}, torch.float32, torch.float32),
        ({"fp16": True}, torch.float16, torch.float16),
        ({"bf16": True, "dtype": "fp32"}, torch.bfloat16, torch.bfloat16),
    ],
)
def test_flags_win_over_the_device(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], on_fast: torch.dtype, on_slow: torch.dtype
) -> None:
    for is_fast, expected in ((True, on_fast), (False, on_slow)):
        monkeypatch.setattr(precision, "bf16_is_fast", lambda device, is_fast=is_fast: is_fast)
        assert EncodePassagesConfig(**flags, allow_slow_dtype=True).on(CPU) == expected


def test_training_is_in_fp32_unless_told_otherwise() -> None:
    assert PrecisionConfig().on(CPU) == torch.float32
    assert PrecisionConfig(dtype="auto").named == "auto"


def test_one_type_at_most() -> None:
    with pytest.raises(ConfigError, match="--fp32 and --bf16 exclude each other"):
        EncodePassagesConfig(fp32=True, bf16=True)


def test_an_emulated_type_is_refused_with_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpu_has", lambda *names: False)
    monkeypatch.setattr(machine, "_seconds", lambda dtype: 1.0 if dtype == torch.float32 else 83.0)
    with pytest.raises(ConfigError, match=r"--bf16: .* 83 times slower than fp32.*--dtype auto.*--allow-slow-dtype"):
        PrecisionConfig(bf16=True).on(CPU)
    assert PrecisionConfig(dtype="auto").on(CPU) == torch.float32
    assert PrecisionConfig(bf16=True, allow_slow_dtype=True).on(CPU) == torch.bfloat16


def test_a_limit_of_instructions_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    assert machine.bf16_is_fast(CPU)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert not machine.bf16_is_fast(CPU)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert machine.bf16_is_fast(CPU)
