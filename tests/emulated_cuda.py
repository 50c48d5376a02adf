"""A CUDA device that is none, for tests of everything but kernels, memory and NCCL.

Tensors keep their values on the CPU and tell Python that they are on cuda:0. What a GPU refuses is refused: operations
that mix them with CPU tensors, NumPy's view of them, CPU tensors in collectives, CUDA tensors inside gathered objects.
What makes the host wait for a GPU is counted by line. What a non-blocking copy brings to the CPU is not there before an
event, or another wait, says so.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from emulated_operations import is_cuda_device, mapped, run
from emulated_tensor import CUDA, EmulatedTensor, line_of_package, state
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_retrieval.parallel.topology import ProcessTopology


class _Mode(TorchDispatchMode):
    """Sees the operations on CPU tensors as well."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _Event:
    """An event in the one stream there is."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._late: list[tuple[Tensor, Tensor]] = []
        self._recorded_at = 0.0

    def record(self, stream: Any = None) -> None:
        self._late, self._recorded_at = list(state.late), time.perf_counter()

    def synchronize(self) -> None:
        state.waits[f"event {line_of_package()}"] += 1
        state.arrive(sum(any(entry is late for late in self._late) for entry in state.late))

    def elapsed_time(self, end: _Event) -> float:
        return 1000 * (end._recorded_at - self._recorded_at)


def _module_to(plain: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`nn.Module.to` keeps what hangs on parameters, and tied ones tied, as on a real device."""

    def move(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if not any(isinstance(value, torch.device) and value.type == "cuda" for value in (*args, *kwargs.values())):
            return plain(module, *args, **kwargs)
        moved: dict[int, nn.Parameter] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is None or isinstance(parameter, EmulatedTensor):
                    continue
                if id(parameter) not in moved:
                    new = nn.Parameter(EmulatedTensor(parameter.detach()), requires_grad=parameter.requires_grad)
                    new.__dict__.update(parameter.__dict__)
                    moved[id(parameter)] = new
                part._parameters[name] = moved[id(parameter)]
            for name, buffer in part._buffers.items():
                if buffer is not None and not isinstance(buffer, EmulatedTensor):
                    part._buffers[name] = EmulatedTensor(buffer)
        return module

    return move


def _make_tensor(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` makes its values on the CPU and copies them."""

    def make(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        made = plain(mapped(lambda leaf: leaf.item() if isinstance(leaf, Tensor) else leaf, data), **kwargs)
        return made.to(CUDA) if is_cuda_device(device) else made

    return make


def _object_collective(plain: Callable[..., Any]) -> Callable[..., Any]:
    def collect(*args: Any, **kwargs: Any) -> Any:
        state.wait("objects")  # their sizes and bytes are read on the host
        state.allows_cpu = True
        try:
            return plain(*args, **kwargs)
        finally:
            state.allows_cpu = False

    return collect


@contextlib.contextmanager
def emulated_cuda(topology: ProcessTopology) -> Iterator[tuple[ProcessTopology, Counter[str]]]:
    """The topology with its device replaced, and the waits so far, by operation and line."""
    state.waits.clear()
    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        patch(torch.cuda, "_lazy_init", lambda: None)
        patch(torch.cuda, "current_device", lambda: CUDA)
        patch(torch.cuda, "synchronize", lambda device=None: state.wait("synchronize"))
        patch(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
        patch(torch.cuda, "Event", _Event)
        patch(torch, "tensor", _make_tensor(torch.tensor))
        patch(Tensor, "cuda", lambda self, *args, **kwargs: self.to(CUDA))
        patch(Tensor, "pin_memory", lambda self, *args, **kwargs: self)
        patch(nn.Module, "to", _module_to(nn.Module.to))
        patch(dist, "all_gather_object", _object_collective(dist.all_gather_object))
        stack.enter_context(_Mode())
        yield replace(topology, device=CUDA), state.waits
