"""What the trainer asks of a paradigm, and the pieces that step modules share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from megatron_retrieval.types.metrics import Metrics
from megatron_retrieval.types.tokens import TokenBatch, by_length, in_given_order


class StepModule(Protocol):
    """One paradigm's step: from a rank's share of a batch to gradients, or to numbers only.

    Both methods are collectives over all ranks that train.
    """

    def forward_backward(self, batch: Any, iteration: int, loss_scale: float) -> Metrics:
        """Accumulate the gradients of `loss * loss_scale`, in training mode.

        Args:
            batch: this rank's share, as the BatchSource makes it: on the CPU.
            iteration: steps taken before, from 0; with the run's seed it determines the dropout.
            loss_scale: keeps small gradients above zero in float16.

        Returns:
            This rank's part of the numbers about the global batch, `loss` among them: a `Mean` over its examples. The
            names are the same on every rank, whatever its share holds.
        """
        ...

    def evaluate(self, batch: Any) -> Metrics:
        """The same numbers without gradient or dropout, in evaluation mode; further ones may stand beside them."""
        ...


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model without dropout inside the block; afterwards in the mode in which it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def encode_texts(
    encode: Callable[[TokenBatch], Tensor], texts: TokenBatch, micro_batch_size: int, device: torch.device
) -> Tensor:
    """[n, D] vectors of the texts, in their order, encoded a length-sorted chunk at a time on the device."""
    chunks = by_length(texts.lengths, micro_batch_size)
    return in_given_order(torch.cat([encode(texts.rows(chunk).to(device)) for chunk in chunks]), chunks)


def distinct_texts(texts: TokenBatch) -> tuple[TokenBatch, Tensor]:
    """Each different text once, and for every row of `texts` its place among them; all of it on the CPU.

    Questions of one article share passages and hard negatives; encoding a text once gives all of them its vector,
    and its gradient is the sum of theirs.
    """
    keys = torch.cat([texts.lengths[:, None], texts.ids.masked_fill(~texts.is_real(), 0)], dim=1)
    _, place_of = torch.unique(keys, dim=0, return_inverse=True)
    rows = torch.arange(len(texts), device=place_of.device)
    first = rows.new_full((int(place_of.max()) + 1,), len(texts)).scatter_reduce_(0, place_of, rows, "amin")
    return texts.rows(first), place_of
