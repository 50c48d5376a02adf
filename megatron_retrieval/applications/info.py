"""What this machine is, what it is fast in, and what follows for defaults."""

from __future__ import annotations

import torch

from megatron_retrieval.index.exact.int8_codes import fastest_codes
from megatron_retrieval.parallel import machine
from megatron_retrieval.training import run_record

#: the width of the vectors for which search's 8-bit product is chosen here
_DIMENSION = 768


def machine_rows() -> list[tuple[str, str]]:
    """(what, found here or following from it) for `megatron-retrieval info`; measures products for a second."""
    device = machine.this_device()
    hardware, versions = run_record.hardware(), run_record.versions()
    codes = fastest_codes(_DIMENSION)
    accelerators = [name for name, there in run_record.accelerators().items() if there]
    return [
        *((name, version) for name, version in versions.items() if version is not None),
        ("CPU", f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_bytes'] / 1e9:.0f} GB"),
        ("instructions, threads", f"{hardware['cpu_capability']}, {hardware['torch_threads']}"),
        ("GPUs", ", ".join(hardware["gpus"]) or "none"),
        ("accelerators", ", ".join(accelerators) or "none"),
        ("fp32 on the CPU", f"{machine.float32_rate() / 1e9:.0f} GFLOP/s"),
        ("bf16 on the CPU", _relative(torch.bfloat16)),
        ("fp16 on the CPU", _relative(torch.float16)),
        ("programs compute on", device.type),
        ("--dtype auto means", "bf16" if machine.bf16_is_fast(device) else "fp32"),
        ("exact search on the CPU", "multiplies the vectors" if codes is None else "multiplies 8-bit codes first"),
    ]


def _relative(dtype: torch.dtype) -> str:
    """Measured speed against fp32, in words."""
    slowdown = machine.slowdown(dtype)
    return f"{1 / slowdown:.1f} times as fast as fp32" if slowdown < 1 else f"{slowdown:.0f} times slower than fp32"
