"""A CUDA device that is none, for tests of everything but kernels, memory and NCCL.

Tensors keep their values on the CPU and tell Python that they are on cuda:0. What a GPU refuses is refused: operations
that mix them with CPU tensors, NumPy's view of them, CPU tensors in collectives, CUDA tensors inside gathered objects.
What makes the host wait for a GPU is counted by line. What a non-blocking copy brings to the CPU is not there before an
event, or another wait, says so.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from megatron_retrieval.parallel.topology import ProcessTopology

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
#: operations whose result has a size, or is a number, that only the device knows
_WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "argwhere"),
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
#: what may read one device and write the other
_COPIES = {"copy_", "_to_copy"}


@dataclass
class _State:
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
        self.waits[f"{operation} {_line()}"] += 1
        self.arrive(len(self.late))

    def arrive(self, number: int) -> None:
        for target, values in self.late[:number]:
            target.copy_(values)
        del self.late[:number]


_state = _State(Counter(), [])


def _line() -> str:
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
        return _run(func, args, kwargs or {})

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
            _state.wait("to cpu")
            return copied
        values = copied.detach().clone()
        _state.late.append((copied.detach().fill_(float("nan") if values.is_floating_point() else 77), values))
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


def _leaves(value: Any) -> Iterator[Any]:
    """What stands in lists, tuples and dictionaries."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same lists, tuples and dictionaries with other leaves."""
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(function, part) for part in value])
    if isinstance(value, dict):
        return {key: _mapped(function, part) for key, part in value.items()}
    return function(value)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation of C++."""
    name = func._schema.name.rpartition("::")[2]
    tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    emulated = [tensor for tensor in tensors if isinstance(tensor, EmulatedTensor)]
    is_on_device = bool(emulated) or _is_cuda(kwargs.get("device"))
    _refuse(func, name, args, tensors, emulated)
    _count(name, args, kwargs, tensors, emulated)
    if "device" in kwargs:  # C++ asks for the CPU where it means the device of a tensor
        kwargs = {**kwargs, "device": CPU}
    plain_args, plain_kwargs = _mapped(_values, args), _mapped(_values, kwargs)
    compute = _product_in if func._overloadname in ("dtype", "dtype_out") and "mm" in name else func
    result = compute(*plain_args, **plain_kwargs)
    if name == "copy_":
        return args[0]
    if name == "_local_scalar_dense" or not is_on_device:
        return result
    result = _mapped(lambda leaf: EmulatedTensor(leaf) if type(leaf) is Tensor else leaf, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if emulated else result


def _values(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, EmulatedTensor) else leaf


def _refuse(func: Any, name: str, args: Any, tensors: list[Tensor], emulated: list[EmulatedTensor]) -> None:
    """What a GPU refuses."""
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, EmulatedTensor)]
    if func.namespace == "c10d":
        if on_cpu and name != "barrier" and not _state.allows_cpu:
            raise RuntimeError(f"{func} of CPU tensors at {_line()}: NCCL takes CUDA tensors only")
    elif emulated and name in _INDEXING:
        if not isinstance(args[0], EmulatedTensor):
            raise RuntimeError(f"{func} at {_line()}: a CPU tensor is indexed by, or given, CUDA tensors")
        if len(args) > 2 and not isinstance(args[2], EmulatedTensor) and args[2].dim():
            raise RuntimeError(f"{func} at {_line()}: a CUDA tensor is given CPU values")
    elif torch.are_deterministic_algorithms_enabled() and _adds_in_any_order(name, tensors):
        raise RuntimeError(f"{func} at {_line()} adds in any order on a GPU, whatever is asked for")
    elif emulated and name not in _COPIES and any(tensor.dim() for tensor in on_cpu):
        found = [(str(tensor.device), tuple(tensor.shape)) for tensor in tensors]
        raise RuntimeError(f"{func} at {_line()}: tensors on cuda:0 and on the CPU: {found}")


def _adds_in_any_order(name: str, tensors: list[Tensor]) -> bool:
    return name == "embedding_dense_backward" or (name == "cumsum" and tensors[0].is_floating_point())


def _count(name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], emulated: list[EmulatedTensor]) -> None:
    """What makes the host wait."""
    if name == "_to_copy":
        if not emulated and _is_cuda(kwargs.get("device")) and not kwargs.get("non_blocking"):
            _state.wait("to cuda")
    elif name == "copy_":
        comes, is_late = isinstance(args[0], EmulatedTensor), len(args) > 2 and args[2]
        if len(tensors) == 2 and len(emulated) == 1 and not (comes and is_late):
            _state.wait("copy between devices")
    elif name in _INDEXING and emulated:
        _count_indexing(name, args)
    elif emulated and (name in _WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None)):
        _state.wait(name)


def _count_indexing(name: str, args: Any) -> None:
    indices = [index for index in args[1] if index is not None]
    if any(index.dtype == torch.bool for index in indices):
        fills = len(args) > 2 and not isinstance(args[2], EmulatedTensor) and args[2].numel() == 1
        if not fills:  # a number fills where a mask says, without its places being known
            _state.wait(f"{name} by a mask")
    elif any(not isinstance(index, EmulatedTensor) for index in indices):
        _state.wait(f"{name} from the CPU")


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _product_in(left: Tensor, right: Tensor, dtype: torch.dtype, *, out: Tensor | None = None) -> Tensor:
    """The product of matrices with a wider result, which only CUDA has."""
    result = (left.float() @ right.float()).to(dtype)
    return result if out is None else out.copy_(result)


class _Mode(TorchDispatchMode):
    """Sees the operations on CPU tensors as well."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Event:
    """An event in the one stream there is."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._late: list[tuple[Tensor, Tensor]] = []
        self._recorded_at = 0.0

    def record(self, stream: Any = None) -> None:
        self._late, self._recorded_at = list(_state.late), time.perf_counter()

    def synchronize(self) -> None:
        _state.waits[f"event {_line()}"] += 1
        _state.arrive(sum(any(entry is late for late in self._late) for entry in _state.late))

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
        made = plain(_mapped(lambda leaf: leaf.item() if isinstance(leaf, Tensor) else leaf, data), **kwargs)
        return made.to(CUDA) if _is_cuda(device) else made

    return make


def _object_collective(plain: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        _state.wait("objects")  # their sizes and bytes are read on the host
        _state.allows_cpu = True
        try:
            return plain(*args, **kwargs)
        finally:
            _state.allows_cpu = False

    return run


@contextlib.contextmanager
def emulated_cuda(topology: ProcessTopology) -> Iterator[tuple[ProcessTopology, Counter[str]]]:
    """The topology with its device replaced, and the waits so far, by operation and line."""
    _state.waits.clear()
    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        patch(torch.cuda, "_lazy_init", lambda: None)
        patch(torch.cuda, "current_device", lambda: CUDA)
        patch(torch.cuda, "synchronize", lambda device=None: _state.wait("synchronize"))
        patch(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
        patch(torch.cuda, "Event", _Event)
        patch(torch, "tensor", _make_tensor(torch.tensor))
        patch(Tensor, "cuda", lambda self, *args, **kwargs: self.to(CUDA))
        patch(Tensor, "pin_memory", lambda self, *args, **kwargs: self)
        patch(nn.Module, "to", _module_to(nn.Module.to))
        patch(dist, "all_gather_object", _object_collective(dist.all_gather_object))
        stack.enter_context(_Mode())
        yield replace(topology, device=CUDA), _state.waits
