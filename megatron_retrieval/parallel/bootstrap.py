"""The first import of megatron-core, which is to be quick and quiet.

At import megatron-core asks for parts of torch that are not used here (sharded tensors, distributed checkpoints, a C++
compiler), and hands functions to `torch.compile`. They are four fifths of the time that its import takes.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

#: megatron-core does without these where they cannot be imported
_OPTIONAL = (
    "torch.distributed._tensor",
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
)
#: it insists on these, but looks into them only when they are used
_REQUIRED = ("torch.distributed.checkpoint", "torch.utils.cpp_extension")


class _Unused(ModuleType):
    """A module of which anything may be imported, and nothing used."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextlib.contextmanager
def _without_unused_modules() -> Iterator[None]:
    """Hide modules of torch that nobody has imported yet; afterwards they can be imported as ever."""
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
    """Leave functions as they are: none of those that megatron-core compiles is called on CPU."""
    compile_function = torch.compile

    def leave(function: Any = None, **settings: Any) -> Any:
        return function if function is not None else leave

    torch.compile = leave  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_function


with warnings.catch_warnings(), _without_unused_modules():
    # megatron-core announces at import that Transformer Engine and apex are absent; the run record says so instead
    warnings.simplefilter("ignore")
    with contextlib.nullcontext() if torch.cuda.is_available() else _without_compiler():
        import megatron.core
        import megatron.core.distributed
        import megatron.core.optimizer
        import megatron.core.process_groups_config
        import megatron.core.transformer.transformer_block  # noqa: F401
