"""What the trainer asks of a paradigm, and the pieces that step modules share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_retrieval.types import TokenBatch


class StepModule(Protocol):
    """One paradigm's step: from a rank's share of a batch to gradients, or to numbers only."""

    def forward_backward(self, batch: Any, iteration: int, loss_scale: float) -> Mapping[str, Tensor]:
        """Accumulate the gradients of `loss * loss_scale`.

        Returns:
            Scalars by name, `loss` among them; this rank's part, so that sums over data-parallel ranks are means
            over the global batch.
        """
        ...

    def evaluate(self, batch: Any) -> Mapping[str, Tensor]:
        """The same scalars without gradient or dropout."""
        ...


def length_sorted_chunks(texts: TokenBatch, micro_batch_size: int) -> Iterator[Tensor]:
    """Row numbers of `texts` in chunks of at most `micro_batch_size`, texts of like length together.

    Padding then costs little, and the result is the same because no text sees another.
    """
    yield from torch.argsort(texts.lengths, stable=True).split(micro_batch_size)
