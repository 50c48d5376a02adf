"""Patches of megatron-core 0.16: it runs without CUDA (over gloo), and one bug is fixed on every device.

`install` runs once per process, before any layer of megatron-core is used. `import_megatron` lists the versions that it
was proven with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import utils as megatron_utils
from megatron.core.fusions import fused_softmax
from megatron.core.optimizer import clip_grads
from megatron.core.optimizer import optimizer as megatron_optimizer
from megatron.core.tensor_parallel import layers, mappings
from megatron.core.tensor_parallel import random as megatron_random
from torch import Tensor
from torch.overrides import TorchFunctionMode

from megatron_retrieval.parallel.collectives import add_up

_installed = False


def install(device: torch.device) -> None:
    """Patch megatron-core for `device`; later calls do nothing."""
    global _installed
    if _installed:
        return
    _installed = True
    mappings._reduce = _reduce
    _use_foreach()
    if device.type == "cpu":
        _redirect_device_queries()
        _use_cpu_generators()
        _sum_gradients_at_once()


def _reduce(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over ranks. 0.16 reduces a contiguous copy and returns the original where the input is not contiguous, in
    forward and backward (fixed in 0.19), on GPUs as well."""
    if group.size() == 1:
        return values
    values = values.contiguous()
    add_up(values, group)
    return values


def _use_foreach() -> None:
    """Where neither Transformer Engine nor apex is installed, 0.16 takes norms, scales and copies tensor by tensor, and
    a GPU's host waits for every norm. One call for all tensors replaces each."""
    if clip_grads.l2_norm_impl is megatron_utils.local_multi_tensor_l2_norm:
        clip_grads.l2_norm_impl = _norm_of_all
        clip_grads.multi_tensor_scale_impl = megatron_optimizer.multi_tensor_scale_impl = _scale_all
    megatron_optimizer._multi_tensor_copy_this_to_that = _copy_all


def _norm_of_all(chunk_size: int, overflow: Tensor, lists: list[list[Tensor]], *args: Any) -> tuple[Tensor, None]:
    """The norm [1] of all tensors together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(lists[0]))).view(1), None


def _scale_all(chunk_size: int, overflow: Tensor, lists: list[list[Tensor]], factor: float) -> None:
    """Each tensor of the second list becomes that of the first times the factor."""
    sources, targets = lists
    _copy_all(sources, targets)
    torch._foreach_mul_(targets, factor)


def _copy_all(this: list[Tensor], that: list[Tensor], overflow_buf: Tensor | None = None) -> None:
    """Each tensor of the second list becomes that of the first, in its own dtype."""
    if that and this is not that:
        torch._foreach_copy_(that, this)


def _redirect_device_queries() -> None:
    """Mappings, layers and gradient buffers call `torch.cuda.current_device()`, which always raises without CUDA."""
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda device=None: None
    fused_softmax.get_default_causal_mask = lambda size: torch.ones(size, size).triu(1).bool()


def _sum_gradients_at_once() -> None:
    """A column-parallel layer sums the gradient of its input in the background, which takes a CPU's time from the
    product beside it; by `_reduce` it takes less."""
    layers.ColumnParallelLinear.allreduce_dgrad = property(lambda layer: False, lambda layer, value: None)


def _use_cpu_generators() -> None:
    """Use the CPU's generator for the default random stream, equal on tensor-parallel ranks, and for the forked ones,
    which differ."""
    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    megatron_random.CudaRNGStatesTracker = _CpuStatesTracker
    megatron_random.initialize_rng_tracker(force_reset=True)
    # torch.manual_seed queues a seed for each kind of device that might be found later: 2 ms at every micro-batch
    torch.cuda.manual_seed = torch.default_generator.manual_seed  # type: ignore[assignment]


class _CpuStatesTracker(megatron_random.CudaRNGStatesTracker):
    """megatron-core's named random streams, on the CPU generator."""

    def add(self, name: str, seed: int) -> None:
        self._is_initialized = True
        self.seeds_.add(seed)
        self.states_[name] = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def fork(self, name: str = megatron_random._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
        outer = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outer)


def seed_dropout(seed: int, tp_rank: int) -> None:
    """Seed the random streams of the model: the default one, equal on tensor-parallel ranks, and that of parallel
    regions, which differs."""
    megatron_random.model_parallel_cuda_manual_seed(seed, tp_rank=tp_rank, ep_rank=0, etp_rank=0)


class _CudaAsCpu(TorchFunctionMode):
    """Within the block device='cuda' means the CPU, and `Tensor.type()` has the prefix that the optimizer expects."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def optimizer_context(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context for construction and steps of a megatron-core optimizer."""
    return _CudaAsCpu() if device.type == "cpu" else contextlib.nullcontext()
