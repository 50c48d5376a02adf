"""What this machine is fast in.

Number formats follow from its instructions, so that a run is the same whatever else the machine does. How
much slower an emulated one is, is measured by a small product of matrices.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

import torch

#: sizes [n, D] @ [D, m] of the product that is timed: small enough for a CPU that emulates the type
_TIMED_SHAPE = (64, 768, 256)
#: instructions of CPUs by the type that they multiply, as torch names them
_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}
#: by these oneDNN is told to do without the instructions above
_ISA_LIMITS = ("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA")


def this_device() -> torch.device:
    """Where programs compute here: a GPU where torch sees one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16: GPUs since Ampere, CPUs with AVX-512 BF16, AMX or ARM's. Others
    emulate it, up to a hundred times slower."""
    return is_fast(torch.bfloat16, device)


def is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device computes in this type, rather than emulating it."""
    if dtype == torch.float32:
        return True
    if device.type == "cuda":
        return dtype != torch.bfloat16 or torch.cuda.get_device_capability(device) >= (8, 0)
    return _cpu_has(*_INSTRUCTIONS[dtype])


def _cpu_has(*instructions: str) -> bool:
    """Whether the CPU has one of them, and oneDNN may use it."""
    limit = next((os.environ[name].upper() for name in _ISA_LIMITS if name in os.environ), "ALL")
    if limit not in ("ALL", "DEFAULT") and not any(word in limit for word in ("BF16", "FP16", "AMX", "AVX10")):
        return False
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in old versions
    return any(found.get(name, False) for name in instructions) or (
        "avx512_bf16" in instructions and torch.cpu._is_avx512_bf16_supported()
    )


def slowdown(dtype: torch.dtype) -> float:
    """How many times longer than in float32 a product of matrices takes on this CPU."""
    return _seconds(dtype) / _seconds(torch.float32)


def float32_rate() -> float:
    """Floating-point operations a second of such a product on this CPU, at the size that is timed."""
    rows, width, columns = _TIMED_SHAPE
    return 2 * rows * width * columns / _seconds(torch.float32)


@cache
def _seconds(dtype: torch.dtype) -> float:
    """The best of a few products, after one that makes the library choose its code."""
    rows, width, columns = _TIMED_SHAPE
    left, right = torch.ones(rows, width, dtype=dtype), torch.ones(width, columns, dtype=dtype)
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        left @ right
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compute() -> dict[str, Any]:
    """What programs here compute with, for a run's record."""
    device = this_device()
    return {
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "bf16_is_fast": bf16_is_fast(device),
    }
