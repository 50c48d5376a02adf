"""An encoder of texts, whatever its family: what dual encoders and readers are built over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch, to_device


class Encoder(Protocol):
    """A module: token ids to hidden states. A masked language model shares its parameter
    `embedding.word_embeddings.weight`, a shard by rows."""

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


def mean_states(encoder: Encoder, batch: TokenBatch, segments: Tensor | None = None) -> Tensor:
    """[B, T] ids -> [B, D], the mean of the states of each row's real tokens, in float32."""
    states = encoder(batch, segments)
    weights = batch.is_real().float() / to_device(batch.lengths, states.device)[:, None]
    return torch.einsum("btd,bt->bd", states.float(), weights)


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
    def norm_epsilon(self) -> float:
        """Added to the variance in norms of heads."""
        return 1e-12

    @property
    def pooler_activation(self) -> Literal["tanh", "relu", "gelu"]:
        """Between the two linear layers of a score over a text's state."""
        return "tanh"

    @property
    def pooler_norm(self) -> bool:
        """Whether a norm follows it."""
        return False

    @property
    def head_biases(self) -> bool:
        """Whether the first linear layer of a head, and a norm behind it, have biases."""
        return True

    @abstractmethod
    def build_encoder(self, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> Encoder:
        """An encoder whose parameters are laid out for `topology`'s tensor-parallel group.

        It is an nn.Module; whoever builds it initialises or loads its weights, and moves it to a device.
        """
