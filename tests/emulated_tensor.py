"""Tensors of the emulated device, see `emulated_cuda`: values on the CPU, on cuda:0 for Python."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")


@dataclass
class State:
    """Of the emulation that is in force.

    Attributes:
        waits: how often the host waited, by operation and line.
        late: what non-blocking copies have not brought yet: target and values.
        allows_cpu: gloo gathers objects through CPU tensors, where NCCL uses the device's.
    """

    waits: Counter[str]
    late: list[tuple[Tensor, Tensor]]
    allows_cpu: bool = False

    def wait(self, operation: str) -> None:
        self.waits[f"{operation} {line_of_package()}"] += 1
        self.arrive(len(self.late))

    def arrive(self, number: int) -> None:
        for target, values in self.late[:number]:
            target.copy_(values)
        del self.late[:number]


state = State(Counter(), [])


def line_of_package() -> str:
    """The innermost line of the package."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        _, found, name = frame.f_code.co_filename.rpartition("/megatron_retrieval/")
        if found:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


class EmulatedTensor(Tensor):
    """On the CPU for C++, on cuda:0 for Python."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> EmulatedTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=CPU,
        )
        tensor.values = values
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from emulated_operations import run

        return run(func, args, kwargs or {})

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        wish = _Wish.of(self, *args, **kwargs)
        if wish.device.type == "cpu":
            return self._on_cpu(wish)
        if wish.dtype == self.dtype and not wish.copy:
            return self
        return torch.ops.aten._to_copy(self, dtype=wish.dtype)

    def cpu(self, memory_format: Any = None) -> Tensor:
        return self.to(CPU)

    def cuda(self, *args: Any, **kwargs: Any) -> Tensor:
        return self

    def _on_cpu(self, wish: _Wish) -> Tensor:
        copied = _Leave.apply(self, wish.dtype)
        if not wish.non_blocking:
            state.wait("to cpu")
            return copied
        values = copied.detach().clone()
        state.late.append((copied.detach().fill_(float("nan") if values.is_floating_point() else 77), values))
        return copied

    def type(self, dtype: Any = None) -> Any:
        return self.to(dtype) if dtype is not None else super().type().replace("torch.", "torch.cuda.", 1)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a CUDA tensor is pickled: another rank would take it to this rank's device")

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, **kwargs: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or CUDA, **kwargs)

    def __repr__(self, **_: Any) -> str:
        return f"on cuda:0: {self.values}"


@dataclass
class _Wish:
    """Arguments of `Tensor.to`."""

    device: torch.device
    dtype: torch.dtype
    non_blocking: bool
    copy: bool

    @classmethod
    def of(
        cls,
        tensor: Tensor,
        *args: Any,
        device: Any = None,
        dtype: Any = None,
        non_blocking: bool = False,
        copy: bool = False,
        memory_format: Any = None,
    ) -> _Wish:
        for value in args:
            if isinstance(value, Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, bool):
                non_blocking = value
            elif value is not None:
                device = value
        return cls(torch.device(device or tensor.device), dtype or tensor.dtype, non_blocking, copy)


class _Leave(torch.autograd.Function):
    """To the CPU, differentiably."""

    @staticmethod
    def forward(ctx: Any, tensor: EmulatedTensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = tensor.dtype
        with torch._C._DisableTorchDispatch():
            return tensor.values.detach().to(dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(CUDA, ctx.dtype), None
