"""Imports megatron-core first, without its warnings and, on CPU, without the compiler of PyTorch.

megatron-core calls `torch.compile` at import, which imports the compiler: a third of a program's start. The compiled
functions are not called on CPU.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """`torch.compile` returns functions unchanged within the block."""
    compile_function = torch.compile

    def leave(function: Any = None, **settings: Any) -> Any:
        return function if function is not None else leave

    torch.compile = leave  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_function


with warnings.catch_warnings():
    # megatron-core warns that Transformer Engine and apex are missing; the run record names them instead
    warnings.simplefilter("ignore")
    with contextlib.nullcontext() if torch.cuda.is_available() else _without_compiler():
        import megatron.core
        import megatron.core.distributed
        import megatron.core.optimizer
        import megatron.core.process_groups_config
        import megatron.core.transformer.transformer_block  # noqa: F401
