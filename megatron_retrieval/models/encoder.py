"""An encoder of texts, whatever its family: what dual encoders and readers are built over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch


class Encoder(Protocol):
    """A module: token ids to hidden states."""

    def __call__(self, batch: TokenBatch, segments: Tensor | None = None) -> Tensor:
        """[B, T] ids -> [B, T, D] hidden states in the model's dtype; those at padding positions mean nothing.

        Args:
            segments: [B, T] int64, which of two texts every token belongs to (0 or 1), for families that tell them
                apart; default: the first.
        """
        ...


def first_states(encoder: Encoder, batch: TokenBatch, segments: Tensor | None = None) -> Tensor:
    """[B, T] ids -> [B, D] hidden states of the first tokens, in the model's dtype.

    A family whose encoder has a method of this name and of these arguments leaves out what only the states of other
    tokens need.
    """
    own: Callable[..., Tensor] | None = getattr(encoder, "first_states", None)
    # a copy, since a view would keep the states of all tokens in memory
    return encoder(batch, segments)[:, 0].clone() if own is None else own(batch, segments)


@dataclass(kw_only=True, frozen=True)
class EncoderShape(ABC):
    """Shape and regularisation of an encoder, one subclass for each family: its fields are flags of training, and
    checkpoints keep them."""

    hidden_size: int
    """Width of the hidden states."""
    vocab_size: int
    """Entries of the vocabulary."""
    init_method_std: float
    """Standard deviation of initial weights."""

    @property
    @abstractmethod
    def max_positions(self) -> int | None:
        """Longest sequence in tokens; None: any."""

    @property
    def is_causal(self) -> bool:
        """A token sees those before it alone."""
        return False

    @property
    def pooler_activation(self) -> Literal["tanh", "relu"]:
        """Between the two linear layers of a score over the first state."""
        return "tanh"

    @abstractmethod
    def build_encoder(self, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> Encoder:
        """An encoder whose parameters are laid out for `topology`'s tensor-parallel group.

        It is an nn.Module; whoever builds it initialises or loads its weights, and moves it to a device.
        """
