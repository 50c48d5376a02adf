"""The first import of megatron-core, which is to be quick and quiet.

At import megatron-core hands functions to `torch.compile`, whose compiler is then imported as well. None of them is
called on CPU, where the compiler would be a third of the start of every program.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """Leave functions as they are."""
    compile_function = torch.compile

    def leave(function: Any = None, **settings: Any) -> Any:
        return function if function is not None else leave

    torch.compile = leave  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_function


with warnings.catch_warnings():
    # megatron-core announces at import that Transformer Engine and apex are absent; the run record says so instead
    warnings.simplefilter("ignore")
    with contextlib.nullcontext() if torch.cuda.is_available() else _without_compiler():
        import megatron.core
        import megatron.core.distributed
        import megatron.core.optimizer
        import megatron.core.process_groups_config
        import megatron.core.transformer.transformer_block  # noqa: F401
