"""Operations on the emulated device, see `emulated_cuda`: what a GPU refuses, and what makes the host wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from emulated_tensor import CPU, EmulatedTensor, line_of_package, state
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

#: operations whose result has a size, or is a number, that only the device knows
_WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "argwhere"),
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
#: what may read one device and write the other
_COPIES = {"copy_", "_to_copy"}


def _leaves(value: Any) -> Iterator[Any]:
    """What stands in lists, tuples and dictionaries."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same lists, tuples and dictionaries with other leaves."""
    if isinstance(value, (list, tuple)):
        return type(value)([mapped(function, part) for part in value])
    if isinstance(value, dict):
        return {key: mapped(function, part) for key, part in value.items()}
    return function(value)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation of C++."""
    name = func._schema.name.rpartition("::")[2]
    tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    emulated = [tensor for tensor in tensors if isinstance(tensor, EmulatedTensor)]
    is_on_device = bool(emulated) or is_cuda_device(kwargs.get("device"))
    _refuse(func, name, args, tensors, emulated)
    _count(name, args, kwargs, tensors, emulated)
    if "device" in kwargs:  # C++ asks for the CPU where it means the device of a tensor
        kwargs = {**kwargs, "device": CPU}
    plain_args, plain_kwargs = mapped(_values, args), mapped(_values, kwargs)
    compute = _product_in if func._overloadname in ("dtype", "dtype_out") and "mm" in name else func
    result = compute(*plain_args, **plain_kwargs)
    if name == "copy_":
        return args[0]
    if name == "_local_scalar_dense" or not is_on_device:
        return result
    result = mapped(lambda leaf: EmulatedTensor(leaf) if type(leaf) is Tensor else leaf, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if emulated else result


def _values(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, EmulatedTensor) else leaf


def _refuse(func: Any, name: str, args: Any, tensors: list[Tensor], emulated: list[EmulatedTensor]) -> None:
    """What a GPU refuses."""
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, EmulatedTensor)]
    if func.namespace == "c10d":
        if on_cpu and name != "barrier" and not state.allows_cpu:
            raise RuntimeError(f"{func} of CPU tensors at {line_of_package()}: NCCL takes CUDA tensors only")
    elif emulated and name in _INDEXING:
        if not isinstance(args[0], EmulatedTensor):
            raise RuntimeError(f"{func} at {line_of_package()}: a CPU tensor is indexed by, or given, CUDA tensors")
        if len(args) > 2 and not isinstance(args[2], EmulatedTensor) and args[2].dim():
            raise RuntimeError(f"{func} at {line_of_package()}: a CUDA tensor is given CPU values")
    elif torch.are_deterministic_algorithms_enabled() and _adds_in_any_order(name, tensors):
        raise RuntimeError(f"{func} at {line_of_package()} adds in any order on a GPU, whatever is asked for")
    elif emulated and name not in _COPIES and any(tensor.dim() for tensor in on_cpu):
        found = [(str(tensor.device), tuple(tensor.shape)) for tensor in tensors]
        raise RuntimeError(f"{func} at {line_of_package()}: tensors on cuda:0 and on the CPU: {found}")


def _adds_in_any_order(name: str, tensors: list[Tensor]) -> bool:
    return name == "embedding_dense_backward" or (name == "cumsum" and tensors[0].is_floating_point())


def _count(name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], emulated: list[EmulatedTensor]) -> None:
    """What makes the host wait."""
    if name == "_to_copy":
        if not emulated and is_cuda_device(kwargs.get("device")) and not kwargs.get("non_blocking"):
            state.wait("to cuda")
    elif name == "copy_":
        comes, is_late = isinstance(args[0], EmulatedTensor), len(args) > 2 and args[2]
        if len(tensors) == 2 and len(emulated) == 1 and not (comes and is_late):
            state.wait("copy between devices")
    elif name in _INDEXING and emulated:
        _count_indexing(name, args)
    elif emulated and (name in _WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None)):
        state.wait(name)


def _count_indexing(name: str, args: Any) -> None:
    indices = [index for index in args[1] if index is not None]
    if any(index.dtype == torch.bool for index in indices):
        fills = len(args) > 2 and not isinstance(args[2], EmulatedTensor) and args[2].numel() == 1
        if not fills:  # a number fills where a mask says, without its places being known
            state.wait(f"{name} by a mask")
    elif any(not isinstance(index, EmulatedTensor) for index in indices):
        state.wait(f"{name} from the CPU")


def is_cuda_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _product_in(left: Tensor, right: Tensor, dtype: torch.dtype, *, out: Tensor | None = None) -> Tensor:
    """The product of matrices with a wider result, which only CUDA has."""
    result = (left.float() @ right.float()).to(dtype)
    return result if out is None else out.copy_(result)
