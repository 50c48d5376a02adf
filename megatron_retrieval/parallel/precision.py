"""Number formats: fp32, or bf16 / fp16 weights with fp32 main weights in the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from megatron_retrieval.config.checks import Checked
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel.machine import bf16_is_fast, is_fast, slowdown

DtypeName = Literal["auto", "fp32", "bf16", "fp16"]
_TORCH_DTYPES: dict[DtypeName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True, frozen=True)
class DtypeConfig(Checked):
    """Number format of weights and activations."""

    dtype: DtypeName = "fp32"
    """Number format of weights and activations; auto: bf16 where the device is fast in it (GPUs since Ampere, CPUs with
    instructions for it), fp32 elsewhere."""
    fp32: bool = False
    """Compute in float32, whatever --dtype says."""
    bf16: bool = False
    """Compute in bfloat16, whatever --dtype says."""
    fp16: bool = False
    """Compute in float16, whatever --dtype says; training scales the loss."""
    allow_slow_dtype: bool = False
    """Compute in bf16 or fp16 even where the device only emulates it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self._given) > 1:
            raise ConfigError(f"--{' and --'.join(self._given)} exclude each other: give one.")

    @property
    def named(self) -> DtypeName:
        """The format that the flags name together."""
        return self._given[0] if self._given else self.dtype

    @property
    def _given(self) -> list[DtypeName]:
        return [name for name in _TORCH_DTYPES if getattr(self, name)]

    @property
    def is_half(self) -> bool:
        """Whether the flags name a format of 16 bits."""
        return self.named in ("bf16", "fp16")

    def on(self, device: torch.device) -> torch.dtype:
        """The dtype of weights and activations on this device.

        Raises:
            ConfigError: the device emulates it, and nobody allowed that.
        """
        if self.named == "auto":
            return torch.bfloat16 if bf16_is_fast(device) else torch.float32
        dtype = _TORCH_DTYPES[self.named]
        if not self.allow_slow_dtype and not is_fast(dtype, device):
            times = f"{slowdown(dtype):.0f} times slower than fp32 here (measured)" if device.type == "cpu" else "slow"
            raise ConfigError(
                f"--{self.named}: this device only emulates it, {times}. Give --dtype auto, which is fp32 on such a "
                "device and bf16 on a fast one, or --allow-slow-dtype."
            )
        return dtype


@dataclass(kw_only=True, frozen=True)
class PrecisionConfig(DtypeConfig):
    """Number format in training; gradients are accumulated in fp32 in any case."""

    initial_loss_scale: float = 65536.0
    """fp16: first loss scale."""
    min_loss_scale: float = 1.0
    """fp16: lowest loss scale."""
    loss_scale_window: int = 1000
    """fp16: iterations without overflow after which the loss scale doubles."""
    hysteresis: int = 2
    """fp16: overflows before the loss scale halves."""


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of a model's weights, by its first."""
    return next(model.parameters()).dtype


def keep_precise(parameter: nn.Parameter, values: Tensor) -> None:
    """Remember what a parameter starts from, where its dtype rounds that: an optimizer trains from there."""
    if values.dtype != parameter.dtype and values.is_floating_point() and not may_round(parameter):
        parameter.precise_values = values  # type: ignore[attr-defined]


def take_precise(parameter: nn.Parameter) -> Tensor | None:
    """What `keep_precise` remembered, which is then forgotten."""
    return vars(parameter).pop("precise_values", None)


def allow_rounding(parameter: nn.Parameter) -> None:
    """Of a frozen parameter whose precise values stand elsewhere, keep only what its dtype leaves of them."""
    take_precise(parameter)
    parameter.may_round = True  # type: ignore[attr-defined]


def may_round(parameter: nn.Parameter) -> bool:
    """Whether `allow_rounding` was called."""
    return getattr(parameter, "may_round", False)
