"""Imports megatron-core first: without its warnings, and without the parts of PyTorch that are not used here.

megatron-core imports sharded tensors, distributed checkpoints and a C++ compiler, and calls `torch.compile`, which
imports another compiler. They would take four fifths of the time of its import.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

import torch

#: versions of megatron-core that the whole test suite passed with, these imports and the patches of `megatron_compat`
PROVEN = ("0.16.1",)

#: megatron-core works without these modules
_OPTIONAL = (
    "torch.distributed._tensor",
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
)
#: megatron-core imports these modules in any case, but does not use them here
_REQUIRED = ("torch.distributed.checkpoint", "torch.utils.cpp_extension")


class _Unused(ModuleType):
    """A module with every name; each is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextlib.contextmanager
def _without_unused_modules() -> Iterator[None]:
    """Hide modules that are not imported yet; they can be imported after the block."""
    hidden: dict[str, Any] = {**dict.fromkeys(_OPTIONAL), **{name: _Unused(name) for name in _REQUIRED}}
    hidden = {name: module for name, module in hidden.items() if name not in sys.modules}
    sys.modules.update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """`torch.compile` returns functions unchanged within the block; on CPU none of them is called."""
    compile_function = torch.compile

    def leave(function: Any = None, **settings: Any) -> Any:
        return function if function is not None else leave

    torch.compile = leave  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_function


def is_proven(version: str) -> bool:
    """Whether this version is among the proven ones; one sentence where it is not."""
    if version in PROVEN:
        return True
    known = ", ".join(PROVEN)
    warnings.warn(f"megatron-core {version} is not proven here, only {known}: check results on it.", stacklevel=2)
    return False


with contextlib.ExitStack() as _stack:
    _has_unused = is_proven(metadata.version("megatron-core"))
    _stack.enter_context(warnings.catch_warnings())
    # megatron-core warns that Transformer Engine and apex are missing; the run record names them instead
    warnings.simplefilter("ignore")
    if _has_unused:  # other versions use more of them
        _stack.enter_context(_without_unused_modules())
    if not torch.cuda.is_available():
        _stack.enter_context(_without_compiler())
    import megatron.core
    import megatron.core.distributed
    import megatron.core.optimizer
    import megatron.core.process_groups_config  # noqa: F401
