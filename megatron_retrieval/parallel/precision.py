"""Number formats: fp32, or bf16 / fp16 weights with fp32 main weights in the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megatron_retrieval.errors import ConfigError


@dataclass(kw_only=True, frozen=True)
class PrecisionConfig:
    """Number format of weights and activations; gradients are accumulated in fp32 in any case."""

    bf16: bool = False
    """Compute in bfloat16."""
    fp16: bool = False
    """Compute in float16, with dynamic loss scaling."""
    initial_loss_scale: float = 65536.0
    """fp16: first loss scale."""
    min_loss_scale: float = 1.0
    """fp16: lowest loss scale."""
    loss_scale_window: int = 1000
    """fp16: iterations without overflow after which the loss scale doubles."""
    hysteresis: int = 2
    """fp16: overflows before the loss scale halves."""

    def __post_init__(self) -> None:
        if self.bf16 and self.fp16:
            raise ConfigError("--bf16 and --fp16 exclude each other: give one.")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        if self.bf16:
            return torch.bfloat16
        return torch.float16 if self.fp16 else torch.float32


def keep_precise(parameter: nn.Parameter, values: Tensor) -> None:
    """Remember what a parameter starts from, where its dtype rounds that: an optimizer trains from there."""
    if values.dtype != parameter.dtype and values.is_floating_point():
        parameter.precise_values = values  # type: ignore[attr-defined]


def take_precise(parameter: nn.Parameter) -> Tensor | None:
    """What `keep_precise` remembered, which is then forgotten."""
    return vars(parameter).pop("precise_values", None)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16: GPUs since Ampere, CPUs with AVX-512 BF16. On others bfloat16
    is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported()
